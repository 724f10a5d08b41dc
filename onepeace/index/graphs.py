"""Graphs (HNSW) of usearch and of FAISS: a query walks from neighbour to neighbour and keeps the nearest it has met.

A filter is applied to what the walk kept, and the walk keeps as many more. What it keeps are the nearest of all rows,
so this finds the right ones wherever the allowed rows lie; where too few of them are kept, every allowed row is
compared.
"""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import need
from onepeace.index.approximate import CHUNK, Approximate
from onepeace.index.exact import Scored
from onepeace.index.faiss_files import FaissStructure, fill

STEP = 12.0
"""Rows that a walk compares for each one it keeps."""


class _Graph(Approximate):
    """`effort` is the number of rows a walk keeps."""

    @classmethod
    def _efforts(cls, rows: int) -> list[int]:
        return [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]

    def _wanted(self, k: int, share: float) -> int:
        """Rows to ask for so that k of a share are likely among them."""
        return min(self.covered, math.ceil(1.3 * (k + 8) / share) + 8)

    def _kept(self, k: int, share: float) -> int:
        """Rows a walk has to keep to find the nearest `_wanted` as surely as the nearest ten."""
        wanted = self._wanted(k, share)
        return max(self.effort, math.ceil(self.effort * math.sqrt(wanted / 32)), wanted)

    def _work(self, k: int, share: float) -> float:
        return STEP * self._kept(k, share) if share else math.inf

    def _candidates(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None, share: float
    ) -> NDArray[np.int64]:
        rows = self._walk(self.scored.folded_queries(queries), self._wanted(k, share), self._kept(k, share))
        return rows if mask is None else np.where((rows >= 0) & mask[rows], rows, -1)

    @abstractmethod
    def _walk(self, queries: NDArray[np.float32], wanted: int, kept: int) -> NDArray[np.int64]:
        """(q, wanted) rows a walk that keeps `kept` found nearest, best first, -1 for none."""


class UsearchGraph(_Graph):
    """Its vectors are kept in bfloat16."""

    name = "usearch"

    @classmethod
    def _made(cls, scored: Scored) -> Any:
        index = need("usearch.index", "index").Index(
            ndim=scored.folded_dim, metric="ip", dtype="bf16", connectivity=16, expansion_add=128
        )
        for start in range(0, scored.rows, CHUNK):
            vectors = scored.folded(slice(start, start + CHUNK))
            index.add(np.arange(start, start + len(vectors)), vectors)
        return index

    @classmethod
    def library(cls) -> str:
        return f"usearch {need('usearch', 'index').__version__}"

    def save(self, path: Path) -> None:
        try:
            self.native.save(path)
        except RuntimeError as error:
            raise OSError(f"{path}: cannot be written ({error})") from error
        if path.stat().st_size != self.native.serialized_length:  # it does not look at whether its last bytes were
            raise OSError(f"{path}: cannot be written ({path.stat().st_size} of {self.native.serialized_length} bytes)")

    @classmethod
    def _read(cls, path: Path) -> Any:
        return need("usearch.index", "index").Index.restore(str(path), view=True)

    def _walk(self, queries: NDArray[np.float32], wanted: int, kept: int) -> NDArray[np.int64]:
        found = self.native.search(queries, kept)  # it keeps as many as it is asked for
        keys = found.keys.reshape(len(queries), -1).astype(np.int64)
        counts = np.reshape(found.counts if len(queries) > 1 else len(found), (-1, 1))
        return np.where(np.arange(keys.shape[1]) < counts, keys, -1)[:, :wanted]


class FaissGraph(_Graph, FaissStructure):
    """Its vectors are kept in a byte per dimension."""

    name = "faiss-hnsw"

    @classmethod
    def _made(cls, scored: Scored) -> Any:
        faiss = need("faiss", "index")
        kind = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexHNSWSQ(scored.folded_dim, kind, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        fill(index, scored, learned=CHUNK)
        return index

    def _walk(self, queries: NDArray[np.float32], wanted: int, kept: int) -> NDArray[np.int64]:
        faiss = need("faiss", "index")
        return self.native.search(queries, wanted, params=faiss.SearchParametersHNSW(efSearch=kept))[1]
