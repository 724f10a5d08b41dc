"""Banks of unrelated queries, and their scores against the files of an index.

Each index is scored in advance against a few hundred unrelated queries: generic words and sentences in the package, and
pictures and sounds, whose vectors are stored with a model (calibrate.py). match.py compares the scores of a query with
theirs.
"""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line
from onepeace.index.matrix_files import read
from onepeace.index.store import Store

MODALITIES = ("image", "audio", "text")
"""Modalities of items that queries are scored against."""
SMALLEST = 1e-8
"""Lower bound of variances."""
BANKS_FORMAT = "2"
"""Version of `Banks.to_bytes`."""
SCORES = ("best", "squares", "sums", "counts")
"""Attributes of `Banks` that an index stores."""
BLOCK = 1 << 14
"""Items compared at once: bounds the memory."""


class BankScores(NamedTuple):
    """Cosines of the n queries of a bank with the items of one modality in an index."""

    best: NDArray
    """(n,) highest cosine of each query, ascending."""
    mean: float
    deviation: float
    centre: NDArray
    """(E,) mean of the query vectors."""


class Banks:
    """Vectors of unrelated queries by bank, and their scores in one index.

    Attributes:
        vectors: bank -> (n, E) float32 unit rows; "BANK/MODALITY" replaces "BANK" for items of that modality.
        model: hash of the model that encoded them.
        best: (N, M) float32, best cosine of each query, bank after bank, with the items of each modality; -inf if none.
        squares: (N, M) float64, sum of the squares of the cosines with all these items.
        sums: (M, E) float64, sum of the items' vectors.
        counts: (M,) int64, number of items.
    """

    def __init__(self, vectors: Mapping[str, NDArray], model: str = "") -> None:
        self.vectors = {name: np.asarray(rows, np.float32) for name, rows in vectors.items()}
        self.model = model
        self._rows: dict[str, slice] = {}  # of each bank in `_queries`
        first = 0
        for name, bank_vectors in self.vectors.items():
            self._rows[name] = slice(first, first + len(bank_vectors))
            first += len(bank_vectors)
        self._queries = np.empty((0, 0), np.float32)
        if vectors:
            self._queries = np.concatenate(list(self.vectors.values()))
        num_queries, embed_dim = self._queries.shape
        self.best = np.full((num_queries, len(MODALITIES)), -np.inf, np.float32)
        self.squares = np.zeros((num_queries, len(MODALITIES)))
        self.sums = np.zeros((len(MODALITIES), embed_dim))
        self.counts = np.zeros(len(MODALITIES), np.int64)
        self._bank_scores: dict[tuple[str, str], BankScores] = {}

    def add(self, vectors: NDArray, modalities: Sequence[str] | NDArray) -> None:
        """Add items: (n, E) unit rows and their modalities. Modalities that are not built in have no scores.

        Costs 2 N n E operations, about a second for 100,000 items of 256 dimensions.
        """
        self._bank_scores.clear()
        if not len(self._queries):
            return
        modality_of_row = np.asarray(modalities)
        for code, modality in enumerate(MODALITIES):
            rows = np.flatnonzero(modality_of_row == modality)
            for first in range(0, len(rows), BLOCK):
                block = np.asarray(vectors[rows[first : first + BLOCK]], np.float32)
                cosines = self._queries @ block.T
                best_of_block = cosines.max(axis=1)
                self.best[:, code] = np.maximum(self.best[:, code], best_of_block)
                self.squares[:, code] += np.square(cosines).sum(axis=1)
                self.sums[code] += block.sum(axis=0, dtype=np.float64)
                self.counts[code] += len(block)

    def scores(self, bank: str, modality: str) -> BankScores | None:
        """Scores of a bank against the items of a modality; None if there are no such queries or items."""
        rows = self._rows.get(f"{bank}/{modality}", self._rows.get(bank))
        if rows is None or modality not in MODALITIES:
            return None
        code = MODALITIES.index(modality)
        count = int(self.counts[code])
        if not count:
            return None
        if (bank, modality) not in self._bank_scores:
            queries = self._queries[rows]
            mean_item = (self.sums[code] / count).astype(np.float32)
            mean = float((queries @ mean_item).mean())
            variance = float(self.squares[rows, code].mean()) / count - mean**2
            self._bank_scores[bank, modality] = BankScores(
                best=np.sort(self.best[rows, code]),
                mean=mean,
                deviation=max(variance, SMALLEST) ** 0.5,
                centre=queries.mean(axis=0),
            )
        return self._bank_scores[bank, modality]

    @classmethod
    def load(cls, content: bytes | None, best: bytes | None = None) -> "Banks":
        """Load the output of `to_bytes` and `best_bytes`; None = no banks, no items.

        Raises:
            UserError: the content is damaged or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if content is None:
            return cls({})
        remedy = "make it again: onepeace calibrate INDEX --force"
        try:
            tensors = load(content)
            header_size = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + header_size]).get("__metadata__", {})
            if metadata.get("format") != BANKS_FORMAT:
                raise UserError(f"the calibration has another format version; {remedy}")
            names = json.loads(metadata["banks"])
            banks = cls({name: tensors[name] for name in names}, metadata["model"])
            if not np.isfinite(banks._queries).all():
                raise ValueError("not all of its numbers are finite")
            scores = {} if best is None else load(best)
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"the calibration is damaged or cut off ({one_line(error)}); {remedy}") from error
        if banks._has_shapes_of(scores):
            for name in SCORES:
                setattr(banks, name, scores[name].copy())
        return banks

    def _has_shapes_of(self, scores: Mapping[str, NDArray]) -> bool:
        """Whether stored scores are of as many queries and dimensions."""
        if "best" not in scores:
            return False
        return scores["best"].shape == self.best.shape and scores["sums"].shape == self.sums.shape

    def to_bytes(self) -> bytes:
        """Content of a calibration file: the vectors in float16, and the hash of the model."""
        from safetensors.numpy import save

        metadata = {
            "format": BANKS_FORMAT,
            "model": self.model,
            "banks": json.dumps(list(self.vectors)),
        }
        return save({name: rows.astype(np.float16) for name, rows in self.vectors.items()}, metadata)

    def best_bytes(self) -> bytes:
        """Scores of the queries in one index, for `load`."""
        from safetensors.numpy import save

        return save({name: np.ascontiguousarray(getattr(self, name)) for name in SCORES})


def banks_of(store: Store) -> Banks:
    """Unrelated queries of the model of an index, with their scores against all of its vectors.

    The stored scores cover the vectors up to the state meta["scored"]. Later vectors are added; after removals, which
    may have deleted a best hit, all vectors are scored again.
    """
    last, _, removed = store.meta.get("scored", "").partition("-")
    is_valid = removed == store.meta["removed"]
    banks = Banks.load(store.blob("calibration"), store.blob("best") if is_valid else None)
    for rows, vectors in read(store, int(last) if is_valid else 0):
        banks.add(vectors, np.array(store.modalities)[rows["modality"]])
    return banks
