"""The vectors of an index as one matrix, and the nearest of them to a query.

The vectors are mapped from a file that is copied from the database, so that none is read when an index is opened:

    vectors-TOKEN.bin   the vectors by ascending id, and what each is of: `COLUMNS` (files/derived.py)
    lists-TOKEN.faiss   from `LARGE` vectors on, if FAISS is installed (extra `index`): inverted lists (Johnson et al.,
                        arXiv 1702.08734), which propose candidates that are compared exactly

The database has their token and state; the digest of a file up to `VERIFIED` bytes is compared when it is opened, that
of a larger one by `index check` and `index update`. Until a writer has copied its changes, readers take them from the
database, and do without the lists.
"""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.errors import one_line
from onepeace.files.atomic import sync
from onepeace.files.derived import read_derived, write_derived
from onepeace.index.database import VECTOR, Damaged, Store, update_again
from onepeace.index.items import Span
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

COLUMNS = {"id": "<i8", "file": "<i8", "start": "<f8", "end": "<f8", "modality": "i1"}
"""What a vector is of: its id and that of its file, the seconds that it covers (NaN = the whole file), and the place of
its modality in `Store.modalities`."""
DERIVED = "derived"
"""Entry of the metadata with the token of the files, the state of the vectors in them, and what the lists are."""
VERIFIED = 1 << 23
"""Bytes up to which a file is compared with its digest when it is opened, in 10 ms at most."""
READ = 1 << 13
"""Vectors read from the database, or added to lists, at once."""
LARGE = 250_000
"""Number of vectors from which lists are used: exact search takes 5 ms for 100,000 vectors, 45 ms for a million."""
LISTS = 1024
PROBED = 32
"""Lists, and those that a query is compared with."""
TRAINED = 100_000
"""Vectors that the centroids of the lists are found with."""
LISTED = 2
"""Candidates requested of the lists per vector wanted, as these have a byte a number."""
CANDIDATES = 10
"""Candidates requested of a vector database per vector wanted: it does not know which files are allowed."""
BLOCK = 1 << 14
"""Vectors per task of the thread pool; BLAS itself runs single-threaded, as its threads would busy-wait."""
ROUNDING = 1e-6
GATHERED = 0.2
"""Share of rows below which gathering them is faster than comparing all."""
LOST = "%s: not what was written, and not used; searching takes longer; %s"


class Neighbours(NamedTuple):
    """Rows near a query, best first, ties by row."""

    rows: np.ndarray
    """(k,) int64."""
    cosines: np.ndarray
    """(k,) float32."""


def vectors_state(store: Store) -> str:
    """State of an index's vectors, LAST-REMOVED: the largest id and the number of removals."""
    ((last,),) = store.select("SELECT max(id) FROM vectors")
    return f"{last or 0}-{store.meta['removed']}"


def read(store: Store, after: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`COLUMNS` (k,) and vectors (k, E) in the database with an id above ``after``, in blocks, one at least.

    Raises:
        Damaged: a value has another type or length.
    """
    blob = np.dtype((np.void, store.embed_dim * VECTOR.itemsize))
    record = np.dtype([*COLUMNS.items(), ("vector", blob)])
    sql = 'SELECT id, file, "start", "end", modality, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?'
    while True:
        values = store.select(sql, (after, READ))
        try:
            records = np.array(values, record)  # None is NaN in a float column
        except (TypeError, ValueError, OverflowError) as error:
            raise Damaged(store.folder, error) from error
        blobs = np.ascontiguousarray(records["vector"])
        yield records, blobs.view(VECTOR).reshape(-1, store.embed_dim)
        if len(values) < READ:
            return
        after = values[-1][0]


def derived(folder: Path) -> list[Path]:
    """The files of an index that are derived from the vectors in its database."""
    return sorted([*folder.glob("vectors-*.bin"), *folder.glob("lists-*.faiss")])


def remove_derived(folder: Path, but: str = "") -> None:
    """Remove the files that are derived from the vectors, except those of a token."""
    for path in derived(folder):
        if path.stem.partition("-")[2] != but:
            path.unlink(missing_ok=True)


def _about(store: Store) -> dict[str, Any]:
    """The entry `DERIVED` of the metadata; its token is empty if there are no files."""
    about: dict[str, Any] = json.loads(store.meta.get(DERIVED, '{"token": "", "state": "", "lists": null}'))
    return about


def _paths(folder: Path, token: str) -> tuple[Path, Path]:
    """Names of the derived files of a token."""
    return folder / f"vectors-{token}.bin", folder / f"lists-{token}.faiss"


def _about_lists(path: Path, embed_dim: int) -> dict[str, Any] | None:
    """Size of a file of lists, and digest of what it has before the vectors in it; None if there is none.

    FAISS reads beyond the end of a file that is cut off, or whose head is damaged; damage elsewhere only costs
    candidates.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(LISTS * (4 * embed_dim + 8) + (1 << 12))
            return {"size": os.fstat(file.fileno()).st_size, "head": hashlib.sha256(head).hexdigest()}
    except FileNotFoundError:
        return None


@cache
def _faiss() -> Any:
    """The module faiss; None if it is not installed."""
    try:
        return import_module("faiss")
    except ImportError:
        return None


class Matrix:
    """All vectors of one state of an index, n of them. A row is the number of a vector in it.

    Args:
        store: open for reading, in a context in which all reads see one state.

    Attributes:
        vectors: (n, E) float32, unit rows.
        columns: `COLUMNS` (n,), of them
        id: (n,) int64, ascending;
        file: (n,) int64: the id of the file of each row;
        modality: (n,) int8: place in `Store.modalities`.
        is_mapped: whether all of them are mapped from the file.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        about = _about(store)
        path, self._lists_path = _paths(store.folder, about["token"])
        self._lists_about = about["lists"]
        self.columns = {name: np.empty(0, dtype) for name, dtype in COLUMNS.items()}
        self.vectors = np.empty((0, store.embed_dim), VECTOR)
        content = read_derived(path, about["token"], most_checked=VERIFIED)
        if content is not None:
            self.columns = {name: content.arrays[name] for name in COLUMNS}
            self.vectors = content.arrays["vectors"]
        elif about["token"]:
            log.warning(LOST, path, update_again(store.folder))
        self.is_mapped = content is not None and about["state"] == vectors_state(store)
        if not self.is_mapped:
            self._read_changes()
        self.id = self.columns["id"]
        self.file = self.columns["file"]
        self.modality = self.columns["modality"]

    def _read_changes(self) -> None:
        """Leave out what has been removed since the file was written, and add what is new."""
        ids = self.columns["id"]
        last = int(ids[-1]) if len(ids) else 0
        kept_ids = self.store.select("SELECT id FROM vectors WHERE id <= ?", (last,))
        is_kept = np.isin(ids, np.array(kept_ids, np.int64))
        added = [*read(self.store, last)]
        self.vectors = np.concatenate([self.vectors[is_kept], *(vectors for _, vectors in added)])
        columns = {}
        for name, column in self.columns.items():
            columns[name] = np.concatenate([column[is_kept], *(rows[name] for rows, _ in added)])
        self.columns = columns

    def __len__(self) -> int:
        return len(self.id)

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
    def rows(self) -> list[np.ndarray]:
        """Rows of each of `Store.modalities`, ascending."""
        return [np.flatnonzero(self.modality == code) for code in range(len(self.store.modalities))]

    def span(self, row: int) -> Span:
        """The part of a file that a row stands for."""
        modality = self.store.modalities[self.modality[row]]
        return Span(modality, _seconds(self.columns["start"][row]), _seconds(self.columns["end"][row]))

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

    @cached_property
    def lists(self) -> Any:
        """The lists over the rows, opened by FAISS; None if there are none, or FAISS is not installed."""
        if self._lists_about is None or not self.is_mapped or _faiss() is None:  # a small index imports no FAISS
            return None
        if _about_lists(self._lists_path, self.store.embed_dim) != self._lists_about:
            log.warning(LOST, self._lists_path, update_again(self.store.folder))
            return None
        faiss = _faiss()
        lists = faiss.read_index(os.fspath(self._lists_path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        faiss.downcast_InvertedLists(lists.invlists).prefetch_nthread = 0  # to start 32 threads takes 1 ms a query
        return lists

    def listed(self, query: np.ndarray, count: int, wanted: np.ndarray) -> np.ndarray:
        """Rows that the lists propose; none without lists.

        Args:
            wanted: (n,) bool, rows of which the best are asked for.
        """
        if self.lists is None:
            return np.empty(0, np.int64)
        faiss = _faiss()
        parameters = faiss.SearchParametersIVF(nprobe=PROBED)
        if not wanted.all():
            parameters.sel = faiss.IDSelectorBitmap(np.packbits(wanted, bitorder="little"))
        with one_blas_thread():
            _, (rows,) = self.lists.search(query[None], count, params=parameters)
        return rows[rows >= 0]


def _seconds(value: np.float64) -> float | None:
    """A time of the matrix, where NaN stands for none."""
    return None if np.isnan(value) else float(value)


@dataclass
class _Search:
    """One query, and what was computed for it."""

    matrix: Matrix
    query: np.ndarray
    count: int
    allowed: np.ndarray | None
    service: Any

    def best(self, code: int) -> Neighbours:
        """The best rows of a modality, by float64 sums that depend only on the row, so that equal rows have equal
        cosines."""
        near = self._near(code)
        vectors = self.matrix.vectors[near]
        cosines = (vectors * self.query.astype(np.float64)).sum(axis=1)
        order = np.lexsort((near, -cosines))[: self.count]
        best_cosines = np.clip(cosines[order], -1, 1)
        return Neighbours(near[order], best_cosines.astype(np.float32))

    def _near(self, code: int) -> np.ndarray:
        """Rows of a modality among which the best are, few of them."""
        wanted = self.matrix.modality == code
        if self.allowed is not None:
            wanted &= self.allowed
        number = np.count_nonzero(wanted)
        if number <= self.count:
            return np.flatnonzero(wanted)
        if number < GATHERED * len(self.matrix):
            rows = np.flatnonzero(wanted)
        else:
            rows = self._proposed(code, wanted)
            if len(rows) < self.count:
                rows = self.matrix.rows[code] if self.allowed is None else np.flatnonzero(wanted)
                return self._best_of(rows, self._all_cosines[rows])
        return self._best_of(rows, _cosines(self.matrix.vectors[rows], self.query))

    def _proposed(self, code: int, wanted: np.ndarray) -> np.ndarray:
        """Those of the wanted rows that the vector database or the lists propose; too few if these do not answer."""
        if self.service is None:
            return self.matrix.listed(self.query, LISTED * self.count, wanted)
        ids = self.service.candidates(self.query, CANDIDATES * self.count, code)
        return np.empty(0, np.int64) if ids is None else np.flatnonzero(wanted & np.isin(self.matrix.id, ids))

    def _best_of(self, rows: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """The best of some rows, and those as good but for rounding, as BLAS may round equal rows differently."""
        least = np.partition(cosines, -self.count)[-self.count]
        return rows[cosines >= least - ROUNDING]

    @cached_property
    def _all_cosines(self) -> np.ndarray:
        return _cosines(self.matrix.vectors, self.query)


def _cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    cosines = np.empty(len(vectors), np.float32)

    def multiply(first: int) -> None:
        np.matmul(vectors[first : first + BLOCK], query, out=cosines[first : first + BLOCK])

    with one_blas_thread():
        if len(vectors) <= BLOCK:
            multiply(0)
        else:
            list(_threads().map(multiply, range(0, len(vectors), BLOCK)))
    cosines[~np.isfinite(cosines)] = -np.inf
    return cosines


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "onepeace-nearest")


def keep(store: Store) -> None:
    """Write the derived files of an index that is open for writing, if they are not as they should be.

    If the disk is full, a warning is logged instead: the files only save time.
    """
    if any(faults(store)):
        remove_derived(store.folder)
    matrix = Matrix(store)
    try:
        if not matrix.is_mapped or (matrix.lists is None and len(matrix) >= LARGE and _faiss() is not None):
            _write(matrix)
    except OSError as error:
        log.warning("%s: the vectors cannot be copied (%s); searching takes longer", store.folder, one_line(error))
    finally:
        remove_derived(store.folder, but=_about(store)["token"])


def faults(store: Store) -> Iterator[str]:
    """Yield one line for each derived file that is not what was written; reads all of them."""
    about = _about(store)
    path, lists_path = _paths(store.folder, about["token"])
    if about["token"] and read_derived(path, about["token"]) is None:
        yield f"{path.name} is not what was written"
    if about["lists"] and about["lists"] != _about_lists(lists_path, store.embed_dim):
        yield f"{lists_path.name} is not what was written"


def _write(matrix: Matrix) -> None:
    """Write the derived files, and then their token to the database.

    Raises:
        OSError: the disk is full or not writable.
    """
    store = matrix.store
    token = secrets.token_hex(8)
    path, lists_path = _paths(store.folder, token)
    write_derived(path, token, {"vectors": matrix.vectors, **matrix.columns})
    sync(path)
    if len(matrix) >= LARGE:
        _write_lists(matrix.vectors, lists_path)
    sync(store.folder)
    about = {"token": token, "state": vectors_state(store), "lists": _about_lists(lists_path, store.embed_dim)}
    with store.transaction():
        store.meta[DERIVED] = json.dumps(about)


def _write_lists(vectors: np.ndarray, path: Path) -> None:
    """Write inverted lists over all rows, whose numbers are those of the rows, if FAISS is installed."""
    faiss = _faiss()
    if faiss is None:
        log.info("%s: faiss is not installed, so every vector is compared (extra index)", path.parent)
        return
    count, embed_dim = vectors.shape
    chosen = np.random.default_rng(0).choice(count, min(TRAINED, count), replace=False)
    byte = faiss.ScalarQuantizer.QT_8bit
    centroids = faiss.IndexFlatIP(embed_dim)
    lists = faiss.IndexIVFScalarQuantizer(centroids, embed_dim, LISTS, byte, faiss.METRIC_INNER_PRODUCT)
    lists.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
    for start in range(0, count, READ):
        lists.add(np.ascontiguousarray(vectors[start : start + READ]))
    try:
        faiss.write_index(lists, os.fspath(path))
    except RuntimeError as error:
        raise OSError(one_line(error)) from error
    sync(path)


def is_as_stored(store: Store) -> bool:
    """Whether the matrix has what the database has; reads all."""
    matrix = Matrix(store)
    start = 0
    for rows, vectors in read(store):
        block = slice(start, start + len(rows))
        for name, column in matrix.columns.items():
            if not np.array_equal(column[block], rows[name], equal_nan=name in ("start", "end")):
                return False
        if vectors.tobytes() != matrix.vectors[block].tobytes():
            return False
        start += len(rows)
    return start == len(matrix)
