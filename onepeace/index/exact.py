"""Exact search, and what every search shares: what a row's score is, which rows count, how ties fall.

A score is the inner product of a query and a row, or, with the z-norm's two numbers of each row, how far that product
is above what the row has with any query, in deviations: (x . q - mean) * factor, where factor is 1 / sigma. The same
number is an inner product in one dimension more, [x * factor, mean * factor] . [q, -1], which is what libraries that
know nothing but vectors are given (`Scored.folded`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

QUERIES = 64
"""Queries that share one pass over the rows."""
PIECE = 1 << 14
"""Rows of a pass that are scored at once: the scores of all its queries stay in the processor's cache."""
FEW = 12
"""Up to so many queries one product after the other is faster than a matrix product, which reads memory less evenly:
for 100,000 vectors of 256 dimensions one query takes 4.5 ms instead of 11, eight take 18 instead of 30."""
BLOCK = 2048
"""Rows that few queries share while they are in the cache."""
GATHERED = 2048
"""Rows that are copied together at once when few are allowed; the copy stays in the cache."""
GATHER_SHARE = 0.2
"""Below this share of allowed rows, copying them together is faster than scoring all of them."""
LANES = 16
"""Libraries are several times slower in dimensions that are no multiple of this."""
LARGEST = float(np.finfo(np.float32).max)


class Neighbours(NamedTuple):
    """What a search found."""

    rows: NDArray[np.int64]
    """(q, k) row numbers, best first, equal scores by row; -1 where there was nothing left to find."""
    scores: NDArray[np.float32]
    """(q, k) their scores; -inf where there is no row. Never NaN: rows without a finite score are not found."""


@dataclass(frozen=True)
class Scored:
    """Vectors, what makes scores of them, and which of them count."""

    vectors: NDArray[np.float32]
    """(n, E), of unit length; a memory map is fine."""
    mean: NDArray[np.float32] | None = None
    """(n,) what is taken from each row's inner product; None, like `factor`, for plain inner products."""
    factor: NDArray[np.float32] | None = None
    """(n,) what the difference is multiplied with, above 0."""
    alive: NDArray[np.bool_] | None = None
    """(n,) False for rows that are to be found no more; None when all count."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", np.asarray(self.vectors))  # slices of np.memmap are slow to make
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32:
            raise ValueError(f"vectors are {self.vectors.shape} {self.vectors.dtype}, not (n, E) float32")
        if (self.mean is None) != (self.factor is None):
            raise ValueError("mean and factor belong together; only one is given")
        for name in ("mean", "factor", "alive"):
            value = getattr(self, name)
            if value is not None and value.shape != (self.rows,):
                raise ValueError(f"{name} has the shape {value.shape} for {self.rows} rows")

    @property
    def rows(self) -> int:
        return len(self.vectors)

    @property
    def folded_dim(self) -> int:
        """E, or E + 1 with the z-norm folded in, up to the next multiple of `LANES`."""
        dim = self.vectors.shape[1] + (self.factor is not None)
        return -(-dim // LANES) * LANES

    def folded(self, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Rows as vectors (m, folded_dim) whose inner products with `folded_queries` are scores.

        Libraries take no rows that are not finite; such rows are all 0 here, and are never found for their true scores.
        """
        vectors = self.vectors[rows]
        folded = np.zeros((len(vectors), self.folded_dim), np.float32)
        folded[:, : vectors.shape[1]] = vectors
        if self.mean is not None and self.factor is not None:
            folded[:, vectors.shape[1]] = self.mean[rows]
            folded *= self.factor[rows][:, None]
        folded[~np.isfinite(folded).all(axis=1)] = 0
        return folded

    def folded_queries(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """(q, folded_dim)."""
        folded = np.zeros((len(queries), self.folded_dim), np.float32)
        folded[:, : queries.shape[1]] = queries
        if self.factor is not None:
            folded[:, queries.shape[1]] = -1
        return folded

    def scores(self, queries: NDArray[np.float32], rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """(q, m) by float32 products, whose last bits depend on what else is computed with them."""
        scores = products(queries, self.vectors[rows])
        if self.mean is not None and self.factor is not None:
            scores -= self.mean[rows]
            scores *= self.factor[rows]
        return scores

    def rescored(self, query: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(m,) by float64 sums that depend on the row's numbers alone: equal rows have equal scores."""
        scores = np.empty(len(rows), np.float32)
        double = query.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(rows), GATHERED):
                part = rows[start : start + GATHERED]
                products = (self.vectors[part] * double).sum(axis=1)
                if self.mean is not None and self.factor is not None:
                    products = (products - self.mean[part]) * self.factor[part]
                scores[start : start + GATHERED] = products
        return scores

    def slack(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        """(q,) how far `scores` may be from the true ones: the bound of a float32 sum of E products, and a little."""
        sizes = np.linalg.norm(queries.astype(np.float64), axis=1)
        mean, factor = self._largest
        return (self.vectors.shape[1] + 16) * 2.0**-24 * (sizes + mean) * factor

    @cached_property
    def _largest(self) -> tuple[float, float]:
        """Size of the largest mean and factor."""
        if self.mean is None or self.factor is None:
            return 0.0, 1.0
        return float(np.abs(self.mean).max(initial=0)), float(np.abs(self.factor).max(initial=0))

    def check(self, queries: ArrayLike, k: int) -> NDArray[np.float32]:
        """The queries as (q, E) float32; ValueError when they or k are not what a search takes."""
        found = np.ascontiguousarray(queries, np.float32)
        if found.ndim != 2 or found.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"queries are {found.shape}, the vectors have {self.vectors.shape[1]} dimensions")
        if not np.isfinite(found).all():
            raise ValueError("a query has numbers that are not finite")
        if k < 0:
            raise ValueError(f"k is {k}; it must not be negative")
        return found

    def mask(self, allowed: ArrayLike | None) -> NDArray[np.bool_] | None:
        """Which rows may be found, (n,), of a mask or row numbers; None when all may. ValueError for other arrays."""
        if allowed is None:
            return self.alive
        given = np.asarray(allowed)
        if given.dtype == np.bool_:
            if given.shape != (self.rows,):
                raise ValueError(f"the mask of allowed rows has the shape {given.shape} for {self.rows} rows")
            mask = given
        else:
            if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
                raise ValueError(f"allowed rows are {given.shape} {given.dtype}, neither a mask nor row numbers")
            if given.size and not (0 <= given.min() and given.max() < self.rows):
                raise ValueError(f"allowed rows go from {given.min()} to {given.max()}; there are {self.rows}")
            mask = np.zeros(self.rows, np.bool_)
            mask[given.astype(np.int64)] = True
        return mask if self.alive is None else mask & self.alive


def products(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(q, m): the inner products of queries (q, E) and vectors (m, E)."""
    if len(queries) > FEW:
        return queries @ vectors.T
    found = np.empty((len(queries), len(vectors)), np.float32)
    for start in range(0, len(vectors), BLOCK):
        part = slice(start, start + BLOCK)
        np.vecdot(vectors[part], queries[:, None], out=found[:, part])
    return found


class Exact:
    """Compares a query with every row."""

    name: ClassVar[str] = "exact"

    def __init__(self, scored: Scored) -> None:
        self.scored = scored

    def search(self, queries: ArrayLike, k: int, allowed: ArrayLike | None = None) -> Neighbours:
        """The k best of the allowed rows for each query.

        Args:
            queries: (q, E), of any length.
            allowed: a mask (n,), or row numbers; None for all. Rows that are not alive are never found.

        Raises:
            ValueError: shapes that do not fit, row numbers out of range, queries that are not finite.
        """
        checked = self.scored.check(queries, k)
        return scan(self.scored, checked, k, self.scored.mask(allowed))


def scan(
    scored: Scored, queries: NDArray[np.float32], k: int, mask: NDArray[np.bool_] | None, first: int = 0
) -> Neighbours:
    """The k best of the rows from `first` on for queries (q, E), of those in the mask (n,) if there is one.

    Rows come in pieces. Of each piece those stay that may be among the best by the product's rounding; only they are
    scored exactly and ordered.
    """
    found = nothing(len(queries), k)
    if k == 0:
        return found
    slack = 2 * scored.slack(queries)  # of the one that is k-th, and of the one that is compared with it
    for start in range(0, len(queries), QUERIES):
        block = queries[start : start + QUERIES]
        best = [_Best(k, float(slack[start + i])) for i in range(len(block))]
        for rows in _pieces(scored, mask, first):
            with np.errstate(over="ignore", invalid="ignore"):
                scores = scored.scores(block, rows)
            if isinstance(rows, slice) and mask is not None:
                np.copyto(scores, np.nan, where=~mask[rows])
            for one, values in zip(best, scores, strict=True):
                one.add(rows, values)
        for i, one in enumerate(best, start):
            candidates = one.rows()
            found.rows[i], found.scores[i] = best_of(candidates, scored.rescored(queries[i], candidates), k)
    return found


def nothing(queries: int, k: int) -> Neighbours:
    """A result without a row."""
    return Neighbours(np.full((queries, k), -1, np.int64), np.full((queries, k), -np.inf, np.float32))


def best_of(
    rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k best by score, equal ones by row, as (k,) and (k,) with -1 and -inf behind the last.

    Args:
        rows: (m,), in any order, none twice.
        scores: (m,); what is not finite is left out.
    """
    finite = np.isfinite(scores)
    rows, scores = rows[finite], scores[finite]
    if len(rows) > k > 0:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, equal = np.flatnonzero(scores > kth), np.flatnonzero(scores == kth)
        equal = equal[np.argsort(rows[equal], kind="stable")][: k - len(above)]
        chosen = np.concatenate([above, equal])
        rows, scores = rows[chosen], scores[chosen]
    order = np.lexsort((rows, -scores))[:k]
    best, values = np.full(k, -1, np.int64), np.full(k, -np.inf, np.float32)
    best[: len(order)], values[: len(order)] = rows[order], scores[order]
    return best, values


class _Best:
    """The rows that may be among the k best of one query, whatever the rounding of their scores."""

    def __init__(self, k: int, slack: float) -> None:
        self.k = k
        self.slack = slack
        self.floor = -LARGEST
        self.parts: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []

    def add(self, rows: slice | NDArray[np.int64], scores: NDArray[np.float32]) -> None:
        """Takes the next rows with their scores; NaN and infinity are passed over."""
        near = np.flatnonzero((scores >= self.floor) & (scores <= LARGEST))
        if near.size:
            near, values = self._narrowed(near, scores[near])
            self.parts.append((near + rows.start if isinstance(rows, slice) else rows[near], values))

    def rows(self) -> NDArray[np.int64]:
        """(m,), at least k of them if there were as many."""
        if not self.parts:
            return np.empty(0, np.int64)
        rows, scores = (np.concatenate(arrays) for arrays in zip(*self.parts, strict=True))
        return self._narrowed(rows, scores)[0]

    def _narrowed(
        self, rows: NDArray[np.int64], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        if len(rows) <= self.k:
            return rows, scores
        kth = float(np.partition(scores, len(scores) - self.k)[len(scores) - self.k])
        self.floor = max(self.floor, kth - self.slack)
        near = scores >= self.floor
        return rows[near], scores[near]


def _pieces(scored: Scored, mask: NDArray[np.bool_] | None, first: int) -> Iterator[slice | NDArray[np.int64]]:
    """Rows to be scored at once: slices, or row numbers where few are allowed."""
    if mask is not None and np.count_nonzero(mask[first:]) < GATHER_SHARE * (scored.rows - first):
        rows = first + np.flatnonzero(mask[first:])
        for start in range(0, len(rows), GATHERED):
            yield rows[start : start + GATHERED]
        return
    for start in range(first, scored.rows, PIECE):
        yield slice(start, min(start + PIECE, scored.rows))
