"""Unrelated queries, and the best scores that they have in an index (placeholder)."""

from importlib import resources

import numpy as np

FILE = "calibration.safetensors"
MODALITIES = ("image", "audio", "text")


class Banks:
    def __init__(self, vectors, names, best):
        self.vectors, self.names, self.best = vectors, names, best

    @classmethod
    def load(cls, content, best):
        import io

        if content is None:
            return cls(np.empty((0, 1), np.float32), [], np.empty((0, 3), np.float32))
        try:
            data = np.load(io.BytesIO(content), allow_pickle=False)
            vectors, names = data["vectors"].astype(np.float32), list(data["names"])
        except Exception:
            vectors, names = np.empty((0, 1), np.float32), []
        start = np.full((len(vectors), 3), -np.inf, np.float32)
        if best is not None:
            kept = np.frombuffer(best, np.float32).reshape(-1, 3)
            if len(kept) == len(start):
                start = kept.copy()
        return cls(vectors, names, start)

    @classmethod
    def of_words(cls, embedder):
        words = resources.files("onepeace.index").joinpath("names.txt").read_text().splitlines()[:300]
        vectors = np.asarray(embedder.encode_text(words, progress=False, output="numpy"))
        return cls(vectors, ["word"] * len(words), np.full((len(words), 3), -np.inf, np.float32))

    def to_bytes(self):
        import io

        file = io.BytesIO()
        np.savez(file, vectors=self.vectors.astype(np.float16), names=np.array(self.names))
        return file.getvalue()

    def start(self):
        self.best[:] = -np.inf

    def add(self, vectors, modalities):
        self.add_codes(vectors, np.array([MODALITIES.index(m) for m in modalities]))

    def add_codes(self, vectors, codes):
        if len(self.vectors):
            cosines = self.vectors @ vectors.T
            for code in np.unique(codes):
                self.best[:, code] = np.maximum(self.best[:, code], cosines[:, codes == code].max(axis=1))

    def best_bytes(self):
        return self.best.tobytes()
