"""FAISS's inverted lists: the rows are divided among the nearest of many centres, and a query looks into a few lists.

The lists hold a byte per dimension. Which lists a query looks into is decided here, not by FAISS: as many as hold a
certain number of allowed rows, however many lists that takes. So a filter costs about what no filter costs, and finds
as much also where what is allowed lies far from what is not, as sounds do from pictures.
"""

import math
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import need
from onepeace.index.approximate import AT
from onepeace.index.exact import Scored
from onepeace.index.faiss_files import FaissStructure, fill

LISTS = 4.0
"""Lists per square root of the number of rows."""
POINTS = 40
"""Rows per list that the centres are learned from."""
ROUNDS = 6
"""Of k-means."""
EXACT_COST = 4.0
"""Time of comparing a row exactly, in rows of a list that are compared; the two below are in the same unit."""
PASSED_COST = 0.4
"""Of a row that a filter passes over."""
CALL_COST = 3000.0
"""Of a search that looks at no row."""
COUNTED = 50_000
"""Rows by which it is estimated how many of each list are allowed: counting a million takes longer than a search."""
MORE = 0.3
"""The best k of a share lie as far away as the best k / share of all. To find as many of these as of the best ten, the
rows that are looked at, allowed or not, grow by this power: on clustered vectors and on captions, recall is the same
from all rows down to a twentieth, and for a hundred hits; for a thousand, 0.01 less with 0.25."""


class FaissLists(FaissStructure):
    """`effort` is the number of rows that are looked at."""

    name = "faiss-ivf"

    @classmethod
    def _made(cls, scored: Scored) -> Any:
        faiss = need("faiss", "index")
        lists = max(1, min(scored.rows, round(LISTS * math.sqrt(scored.rows))))
        # Rows go to the centre that is nearest, which inner products do not tell.
        quantizer = faiss.IndexFlatL2(scored.folded_dim)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, scored.folded_dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.spherical, index.cp.niter, index.cp.seed = False, ROUNDS, 0
        index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, POINTS
        fill(index, scored, learned=POINTS * lists)
        return index

    @classmethod
    def _efforts(cls, rows: int) -> list[int]:
        steps = [round(rows * 2 ** (step / 2 - 7)) for step in range(15)]  # from a 128th to all
        return sorted({max(1, step) for step in steps})

    def _work(self, k: int, share: float) -> float:
        if not share:
            return 0.0
        looked_at = self._looked_at(k, share)
        passed = PASSED_COST * looked_at / share if share < 1 else 0.0
        return (CALL_COST + self.native.nlist + looked_at + passed) / EXACT_COST

    def _looked_at(self, k: int, share: float) -> int:
        """Allowed rows that are looked at for k hits."""
        return math.ceil(self.effort * share * max(1.0, k / AT / share) ** MORE)

    def _candidates(
        self, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None, share: float
    ) -> NDArray[np.int64]:
        faiss = need("faiss", "index")
        folded = self.scored.folded_queries(queries)
        products = folded @ self._centres.T
        lengths = np.linalg.norm(queries, axis=1, keepdims=True)
        nearest = np.argsort(-(products + lengths * self._bonus), axis=1)
        if mask is None:
            sizes = self._sizes
        else:  # what is alive stays the same for many queries
            sizes = self._alive if mask is self.scored.alive else self._sums(mask, *self._some_rows)
        held = np.cumsum(sizes[nearest], axis=1)
        enough = 1 + int((held < self._looked_at(k, share)).sum(axis=1).max())
        lists = np.ascontiguousarray(nearest[:, :enough])
        centre_scores = np.take_along_axis(products, lists, axis=1)
        wanted = min(self.covered, 2 * k + 16)
        scores = np.empty((len(queries), wanted), np.float32)
        rows = np.empty((len(queries), wanted), np.int64)
        selector = None if mask is None else faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        # The method of Python takes no parameters, and so no selector; this is the one below it.
        self.native.search_preassigned_c(
            len(queries),
            faiss.swig_ptr(folded),
            wanted,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(centre_scores),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(rows),
            False,
            faiss.SearchParametersIVF(nprobe=lists.shape[1], sel=selector),
        )
        return rows

    @cached_property
    def _centres(self) -> NDArray[np.float32]:
        """(lists, folded dimensions)."""
        return self.native.quantizer.reconstruct_n(0, self.native.nlist)

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """(lists,): rows in each."""
        lists = self.native.invlists
        return np.array([lists.list_size(number) for number in range(self.native.nlist)])

    @cached_property
    def _rows(self) -> NDArray[np.int64]:
        """(covered,): the rows of the first list, of the second, and so on."""
        faiss = need("faiss", "index")
        lists = self.native.invlists
        parts = [faiss.rev_swig_ptr(lists.get_ids(i), size) for i, size in enumerate(self._sizes.tolist()) if size]
        return np.concatenate(parts)

    def _sums(self, values: NDArray[Any], rows: NDArray[np.int64], every: int) -> NDArray[Any]:
        """(lists,): the sum over each list's rows of values (n,), estimated by `rows`: one in `every` of `_rows`."""
        starts = -(-(np.cumsum(self._sizes) - self._sizes) // every)
        filled = np.diff(starts, append=len(rows)) > 0
        sums = np.zeros(len(starts), values.dtype if values.dtype != np.bool_ else np.int64)
        sums[filled] = np.add.reduceat(np.take(values, rows), starts[filled], dtype=sums.dtype)
        return every * sums

    @cached_property
    def _some_rows(self) -> tuple[NDArray[np.int64], int]:
        """About `COUNTED` of `_rows`, evenly, and of how many each is one."""
        every = max(1, self.covered // COUNTED)
        return np.ascontiguousarray(self._rows[::every]), every

    @cached_property
    def _alive(self) -> NDArray[np.int64]:
        """(lists,): rows in each that are alive."""
        return self._sizes if self.scored.alive is None else self._sums(self.scored.alive, self._rows, 1)

    @cached_property
    def _bonus(self) -> NDArray[np.float32]:
        """(lists,): what a list's best row has over its centre for a query of length 1, in the same way for all lists.

        A list's centre has the mean score of its rows; the best one is the further above it the wider they lie. With
        half the variance over the vectors' usual length, unit vectors are searched in the order of the distances of
        their centres, which needs fewer rows than the order of inner products.
        """
        around = np.square(self._centres, dtype=np.float64).sum(axis=1)
        factor, mean = self.scored.factor, self.scored.mean
        if factor is None or mean is None:
            return ((1 - around) / 2).clip(0).astype(np.float32)
        squares = np.square(factor, dtype=np.float64)
        spread = self._sums(squares * (1 + mean**2), self._rows, 1) / np.maximum(self._sizes, 1) - around
        return (spread / (2 * math.sqrt(squares.mean()))).clip(0).astype(np.float32)
