"""What the page and the JSON API share: an index, its model behind one thread, and the limits."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.embed.zero_shot import TEMPLATE, prototypes
from onepeace.errors import UserError
from onepeace.index.index import Index
from onepeace.index.query import LIKE, VECTOR, Part
from onepeace.index.search import Results
from onepeace.index.store import MODALITIES, Item
from onepeace.processors import ImageProcessor
from onepeace.serve.batching import WAIT, Asked, Batching
from onepeace.serve.limits import Limits, Refused

LABELS = 200
"""Labels of one classification."""


class Service:
    """An index that any number of threads may ask.

    What another process writes into the index is seen with the next request.

    Args:
        folder: of the index.
        model, device, dtype: as for `Index.open`.
        limits: of a request; that of pixels holds for the model's own decoder.
        wait: see `Batching`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        limits: Limits | None = None,
        wait: float = WAIT,
    ) -> None:
        self.folder = Path(folder)
        self.limits = limits or Limits()
        self._lock = threading.Lock()  # a connection of SQLite is used by one thread at a time
        self._index = Index.open(folder, model=model, device=device, dtype=dtype)
        self.model = model_name(self._index)  # asked once: another thread may close the connection of the moment
        _ = self._index.rows  # read now, not with the first request
        embedder = self._index.embedder
        if isinstance(processor := embedder.processors.get("image"), ImageProcessor):
            processor.max_pixels = min(processor.max_pixels, self.limits.pixels)
        self.modalities = embedder.modalities
        self.embed_dim = embedder.embed_dim
        self.logit_scale = embedder.logit_scale
        self.batching = Batching(embedder, wait=wait)

    def close(self) -> None:
        self.batching.close()
        self._index.close()

    def counts(self) -> dict[str, int]:
        """Files by kind."""
        sql = "SELECT modality, count(*) FROM files WHERE problem IS NULL GROUP BY modality"
        with self._lock:
            found = dict(self._current().store.connection.execute(sql).fetchall())
        return {key: found[key] for key in (*MODALITIES, "video") if key in found}

    def item(self, id_: int) -> Item:
        """The item of that number; Refused (404) if there is none."""
        with self._lock:
            item = next(self._current().store.items("id = ? AND problem IS NULL", [id_]), None)
        if item is None:
            raise Refused(404, f"no item {id_} in the index")
        return item

    def some(self, count: int) -> list[Item]:
        """Items from all over the index, for someone who has not asked anything yet."""
        with self._lock:
            index = self._current()
            ids = np.unique(index.rows.file)
            chosen = ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int)] if len(ids) else ids
            marks = ", ".join("?" * len(chosen))
            return list(index.store.items(f"id IN ({marks})", [int(id_) for id_ in chosen]))

    def search(self, parts: Sequence[tuple[Asked, float]], **options: Any) -> Results:
        """The files nearest to a query.

        Args:
            parts: what is searched for, with weights; the modality "like" is the number of an item.
            options: those of `Index.search`.

        Raises:
            UserError: nothing to search for, a part or a filter that cannot be read.
        """
        own = [asked for asked, _ in parts if asked.modality != LIKE]
        vectors = iter(self.batching.encode(own) if own else ())
        query = [
            Part(LIKE, self.item(_number(asked)).path, weight)
            if asked.modality == LIKE
            else Part(VECTOR, next(vectors), weight, asked.modality)
            for asked, weight in parts
        ]
        with self._lock:
            return self._current().search(query, **options)

    def classify(self, asked: Asked, labels: Sequence[str], template: str | None = None) -> dict[str, float]:
        """Probability of each label for one picture, sound or text, the most likely first.

        Args:
            template: sentence with {} for the label; None = one that suits the modality.
        """
        names = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
        if not 1 <= len(names) <= LABELS:
            raise UserError(f"{len(names)} labels; give from 1 to {LABELS}")

        def encode_text(sentences: list[str]) -> np.ndarray:
            return self.batching.encode([Asked("label", "text", sentence) for sentence in sentences])

        classes = prototypes(encode_text, names, template or TEMPLATE.get(asked.modality, "{}")).numpy()
        logits = self.logit_scale * (classes @ self.batching.encode([asked])[0])
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        return {names[i]: float(shares[i]) for i in np.argsort(-shares, kind="stable")}

    def _current(self) -> Index:
        """The index as it is on the disk now."""
        self._index.refresh()
        return self._index


def model_name(index: Index) -> str:
    """The name of the model, for pages; of a folder its last part."""
    return Path(index.model).name if os.path.isabs(index.model) else index.model


def _number(asked: Asked) -> int:
    if not isinstance(asked.value, int):
        raise UserError(f"{asked.name}: the number of an item, as a hit has it")
    return asked.value
