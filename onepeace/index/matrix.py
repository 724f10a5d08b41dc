"""The vectors of an index as one matrix, and exact nearest-neighbour search in it.

The matrix is mapped from files (matrix_files.py) if these hold the reader's state of the database, and read from the
database otherwise. From `LARGE` vectors on, lists (lists.py) or a vector database propose candidates, which are
compared exactly.
"""

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.errors import one_line
from onepeace.index import array_files, lists, matrix_files
from onepeace.index.items import Span
from onepeace.index.lists import LISTS, Lists, keep_lists
from onepeace.index.matrix_files import MATRIX, keep_matrix, open_matrix, read, rows_left
from onepeace.index.store import Store
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

LARGE = 250_000
"""Number of vectors from which lists are used: exact search takes 5 ms for 100,000 vectors, 45 ms for a million."""
CANDIDATES = 10
"""Candidates requested per vector wanted."""
BLOCK = 1 << 14
"""Vectors per task of the thread pool; BLAS itself runs single-threaded, as its threads would busy-wait."""
ROUNDING = 1e-6
GATHERED = 0.2
"""Share of rows below which gathering them is faster than comparing all."""


class Neighbours(NamedTuple):
    """Rows near a query, best first, ties by row."""

    rows: np.ndarray
    """(k,) int64."""
    cosines: np.ndarray
    """(k,) float32."""


class Matrix:
    """All vectors of one state of an index, n of them. A row is the number of a vector in it.

    Args:
        store: open for reading.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.mapped = open_matrix(store)
        """The mapped files, if they hold this state."""
        self._stored_rows: np.ndarray | None = None
        """(n,) int64: place of each row in the files; None if these hold no other vectors."""
        if self.mapped is None:
            blocks = [*read(store)]
            self._entries = np.concatenate([entries for entries, _ in blocks])
            self._stored_vectors = np.concatenate([vectors for _, vectors in blocks])
        else:
            self._entries = self.mapped.arrays["rows"]
            self._stored_vectors = self.mapped.arrays["vectors"]
            self._stored_rows = rows_left(store, self.mapped)
            if self._stored_rows is not None:
                self._entries = self._entries[self._stored_rows]
        self.inverted_lists = Lists.open(store) if len(self) >= LARGE else None

    def __len__(self) -> int:
        return len(self._entries)

    @cached_property
    def vectors(self) -> np.ndarray:
        """(n, E) float32, unit rows; a copy if some in the files are gone, so better ask for `vectors_of` some rows."""
        return self._stored_vectors if self._stored_rows is None else self._stored_vectors[self._stored_rows]

    def vectors_of(self, rows: Any) -> np.ndarray:
        """(k, E) float32 vectors of k rows, or (E,) of one."""
        return self._stored_vectors[rows if self._stored_rows is None else self._stored_rows[rows]]

    def cosines(self, query: np.ndarray) -> np.ndarray:
        """(n,) float32: cosine of each row with a unit vector (E,); -inf where it is not finite."""
        cosines = _cosines(self._stored_vectors, query)
        return cosines if self._stored_rows is None else cosines[self._stored_rows]

    @cached_property
    def id(self) -> np.ndarray:
        """(n,) int64: the id of each row, ascending."""
        return np.ascontiguousarray(self._entries["id"])

    @property
    def file(self) -> np.ndarray:
        """(n,) int64: the id of the file of each row."""
        return self._entries["file"]

    @cached_property
    def files(self) -> tuple[np.ndarray, np.ndarray]:
        """(f,) int64 ids of the files, ascending, and (n,) the place among them of the file of each row."""
        return np.unique(self.file, return_inverse=True)

    @cached_property
    def num_files(self) -> int:
        """Number of files; faster than to make a list of them, as the rows of a file mostly follow each other."""
        is_next = self.file[1:] != self.file[:-1]
        if (self.file[1:] < self.file[:-1]).any():
            return len(self.files[0])
        return int(np.count_nonzero(is_next)) + bool(len(self))

    @cached_property
    def modality(self) -> np.ndarray:
        """(n,) int8: place in `Store.modalities`."""
        return self._entries["modality"].astype(np.int8)

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """Rows of each of `Store.modalities`, ascending."""
        return [np.flatnonzero(self.modality == code) for code in range(len(self.store.modalities))]

    @cached_property
    def num_rows(self) -> list[int]:
        """Number of rows of each of `Store.modalities`."""
        return np.bincount(self.modality, minlength=len(self.store.modalities)).tolist()

    def span(self, row: int) -> Span:
        """The part of a file that a row stands for."""
        entries = self._entries[row]
        modality = self.store.modalities[entries["modality"]]
        return Span(modality, _seconds(entries["start"]), _seconds(entries["end"]))

    def nearest(
        self,
        query: np.ndarray,
        count: int,
        allowed: np.ndarray | None = None,
        service: Any = None,
    ) -> dict[str, Neighbours]:
        """The rows of each modality that are nearest to a unit vector.

        Args:
            query: (E,) float32.
            count: maximum number of rows per modality.
            allowed: (n,) bool; None = all.
            service: a vector database (see `plugin`), which proposes candidates instead of the lists.
        """
        search = _Search(self, query, count, allowed, service)
        neighbours = {}
        for code, modality in enumerate(self.store.modalities):
            best = search.best(code)
            if len(best.rows):
                neighbours[modality] = best
        return neighbours

    def is_whole(self) -> bool:
        """Whether the mapped files still have their full length; reading past the end of one is a bus error."""
        if self.mapped is not None and not self.mapped.is_whole():
            return False
        return self.inverted_lists is None or self.inverted_lists.mapped.is_whole()


def _seconds(value: np.float64) -> float | None:
    """A time of the matrix, where NaN stands for none."""
    return None if np.isnan(value) else float(value)


class _Search:
    """One query, and what was computed for it."""

    def __init__(
        self,
        matrix: Matrix,
        query: np.ndarray,
        count: int,
        allowed: np.ndarray | None,
        service: Any,
    ) -> None:
        self.matrix = matrix
        self.query = query
        self.count = count
        self.allowed = allowed
        self.service = service
        self._listed: tuple[np.ndarray, np.ndarray] | None = None

    def best(self, code: int) -> Neighbours:
        """The best rows of a modality, by float64 sums that depend only on the row, so that equal rows have equal
        cosines."""
        near = self._near(code)
        vectors = self.matrix.vectors_of(near)
        cosines = (vectors * self.query.astype(np.float64)).sum(axis=1)
        order = np.lexsort((near, -cosines))[: self.count]
        best_cosines = np.clip(cosines[order], -1, 1)
        return Neighbours(near[order], best_cosines.astype(np.float32))

    def _near(self, code: int) -> np.ndarray:
        """Rows of a modality among which the best are, few of them."""
        number = self.matrix.num_rows[code]
        if self.allowed is not None:
            number = int(np.count_nonzero(self.allowed & (self.matrix.modality == code)))
        if number > max(self.count, GATHERED * len(self.matrix)):
            proposed = self._proposed(code)
            if len(proposed) >= self.count:
                return proposed
        rows = self.matrix.rows[code]
        if self.allowed is not None:
            rows = rows[self.allowed[rows]]
        return rows if number <= self.count else self._compared(rows)

    def _proposed(self, code: int) -> np.ndarray:
        """Rows of a modality that the vector database or the lists propose; too few if these do not answer."""
        num_candidates = CANDIDATES * self.count
        lists = self.matrix.inverted_lists
        if self.service is not None:
            ids = self.service.candidates(self.query, num_candidates, code)
            if ids is None:
                return np.empty(0, np.int64)
            rows, is_there = _find(self.matrix.id, ids)
            rows = rows[is_there]
            return rows[self._is_wanted(rows, code)]
        if lists is None:
            return np.empty(0, np.int64)
        rows, estimates = self._near_in(lists)
        is_wanted = self._is_wanted(rows, code)
        rows = rows[is_wanted]
        if len(rows) > num_candidates:
            rows = rows[np.argpartition(-estimates[is_wanted], num_candidates)[:num_candidates]]
        return np.concatenate([rows, self._newer_than(lists, code)])

    def _near_in(self, lists: Lists) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the lists nearest to the query, and estimates of their cosines."""
        if self._listed is None:
            ids, estimates = lists.near(self.query)
            order = np.argsort(ids, kind="stable")  # they are found faster in their order
            rows, is_there = _find(self.matrix.id, ids[order])
            self._listed = rows[is_there], estimates[order][is_there]
        return self._listed

    def _newer_than(self, lists: Lists, code: int) -> np.ndarray:
        """The best of the rows of a modality that are newer than the lists."""
        first = int(np.searchsorted(self.matrix.id, lists.last, "right"))
        rows = np.arange(first, len(self.matrix))
        rows = rows[self._is_wanted(rows, code)]
        return self._compared(rows) if len(rows) > self.count else rows

    def _is_wanted(self, rows: np.ndarray, code: int) -> np.ndarray:
        """Which rows are of a modality and allowed."""
        is_wanted = self.matrix.modality[rows] == code
        return is_wanted if self.allowed is None else is_wanted & self.allowed[rows]

    def _compared(self, rows: np.ndarray) -> np.ndarray:
        """The best of some rows, and those as good but for rounding, as BLAS may round equal rows differently."""
        if len(rows) < GATHERED * len(self.matrix):
            cosines = _cosines(self.matrix.vectors_of(rows), self.query)
        else:
            cosines = self._all_cosines[rows]
        least = np.partition(cosines, -self.count)[-self.count]
        return rows[cosines >= least - ROUNDING]

    @cached_property
    def _all_cosines(self) -> np.ndarray:
        return self.matrix.cosines(self.query)


def _find(rising: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of values in an ascending, non-empty array, and whether each occurs there."""
    places = values - rising[0]
    has_gaps = rising[-1] - rising[0] >= len(rising)
    if has_gaps:
        places = np.searchsorted(rising, values)
    return places, np.take(rising, places, mode="clip") == values


def _cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    cosines = np.empty(len(vectors), np.float32)

    def multiply(first: int) -> None:
        np.matmul(vectors[first : first + BLOCK], query, out=cosines[first : first + BLOCK])

    with one_blas_thread():
        list(_threads().map(multiply, range(0, len(vectors), BLOCK)))
    cosines[~np.isfinite(cosines)] = -np.inf
    return cosines


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "onepeace-nearest")


def keep(store: Store) -> None:
    """Bring the files of the matrix to the state of the database, and the lists if there are many vectors.

    If the disk is full, a warning is logged instead: the files only save time.
    """
    try:
        keep_matrix(store)
        if store.select("SELECT count(*) FROM vectors")[0][0] >= LARGE:
            keep_lists(Matrix(store))
    except OSError as error:
        log.warning("%s: the matrix cannot be written (%s); searching takes longer", store.folder, one_line(error))


def derived(folder: Path) -> list[Path]:
    """The files of an index that are derived from the vectors in its database."""
    return [*array_files.files_of(folder, MATRIX), *array_files.files_of(folder, LISTS)]


def remove_derived(folder: Path) -> None:
    """Remove the files that are derived from the vectors."""
    for path in derived(folder):
        path.unlink(missing_ok=True)


def faults(store: Store) -> Iterator[str]:
    """Yield one line for each derived file that is not what was written; reads all of them."""
    key = matrix_files.key_of(store)
    yield from array_files.faults(store.folder, MATRIX, matrix_files.types_of(store), key)
    yield from array_files.faults(store.folder, LISTS, lists.types_of(store), key)
