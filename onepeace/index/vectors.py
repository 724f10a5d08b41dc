"""The vectors of an index as one matrix, and the nearest of them to a query.

The vectors are mapped from a file that is copied from the database, so that none is read when an index is opened:

    vectors-TOKEN.bin   the vectors by ascending id, and what each is of: `COLUMNS` (files/derived.py)
    lists-TOKEN.faiss   of each modality with `LARGE` vectors, if FAISS is installed: `Lists`

The database has the token and the state of the former; the digest of a file up to `VERIFIED` bytes is compared when it
is opened, that of a larger one by `index check` and `index update`. Until a writer has copied its changes, readers take
them from the database.
"""

import json
import logging
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.errors import one_line
from onepeace.files.atomic import sync
from onepeace.files.derived import read_derived, write_derived
from onepeace.index.database import UNIQUE, VECTOR, Damaged, Store, update_again
from onepeace.index.items import Span
from onepeace.index.lists import Lists, ListsFile, Selection, faiss, write_lists
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

COLUMNS = {"id": "<i8", "file": "<i8", "start": "<f8", "end": "<f8", "modality": "i1"}
"""What a vector is of: its id and that of its file, the seconds that it covers (NaN = the whole file), and the place of
its modality in `Store.modalities`."""
DERIVED_NAME = re.compile(rf"vectors-{UNIQUE}\.bin|lists-{UNIQUE}\.faiss")
DERIVED = "vector_files"
"""Entry of the metadata with the derived files, `_Files`."""
VERIFIED = 1 << 23
"""Bytes up to which a file is compared with its digest when it is opened, in 10 ms at most."""
READ = 1 << 13
"""Vectors read from the database at once."""
LARGE = 250_000
"""Number of vectors of a modality from which lists are used: comparing all takes 5 ms for 100,000, 45 for a million."""
UNLISTED = 0.02
"""Share of vectors, new or removed since the lists were made, above which these are made anew: a minute a million."""
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
    return sorted(path for path in folder.iterdir() if DERIVED_NAME.fullmatch(path.name))


def remove_derived(folder: Path, but: Collection[str] = ()) -> None:
    """Remove the files that are derived from the vectors, except those with some names."""
    for path in derived(folder):
        if path.name not in but:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Files:
    """The entry `DERIVED` of the metadata: the derived files of an index."""

    token: str = ""
    """Token of the file of vectors; empty if there is none."""
    state: str = ""
    """State of the vectors in it, `vectors_state`."""
    lists: Mapping[str, ListsFile] = field(default_factory=dict)
    """By modality."""

    @classmethod
    def of(cls, store: Store) -> "_Files":
        files = cls(**json.loads(store.meta.get(DERIVED, "{}")))
        lists = {modality: ListsFile(*file) for modality, file in files.lists.items()}
        return replace(files, lists=lists)

    def vectors_in(self, folder: Path) -> Path:
        return folder / f"vectors-{self.token}.bin"

    def names(self) -> set[str]:
        return {self.vectors_in(Path()).name, *(file.name for file in self.lists.values())}


class _Changed:
    """Rows that are left of an array, and those added to it, as one array that is copied only where it is read.

    Args:
        old: (m, E).
        kept: (k,) int64, ascending: those of its rows that are left.
        added: (a, E).
    """

    def __init__(self, old: np.ndarray, kept: np.ndarray, added: np.ndarray) -> None:
        self.old = old
        self.kept = kept
        self.added = added
        self.dtype = old.dtype
        self.shape = (len(kept) + len(added), old.shape[1])
        self.nbytes = old.itemsize * self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if not isinstance(rows, slice):
            return self._gathered(rows)
        first, end, _ = rows.indices(len(self))
        end = max(first, end)
        num_kept = len(self.kept)
        if first >= num_kept:
            return self.added[first - num_kept : end - num_kept]
        kept = self.kept[first:end]
        if 0 < len(kept) == end - first == kept[-1] - kept[0] + 1:
            return self.old[kept[0] : kept[-1] + 1]
        return np.concatenate([self.old[kept], self.added[: max(0, end - num_kept)]])

    def _gathered(self, rows: np.ndarray) -> np.ndarray:
        is_added = rows >= len(self.kept)
        found = np.empty((len(rows), self.shape[1]), self.dtype)
        found[~is_added] = self.old[self.kept[rows[~is_added]]]
        found[is_added] = self.added[rows[is_added] - len(self.kept)]
        return found


class Matrix:
    """All vectors of one state of an index, n of them. A row is the number of a vector in it.

    Args:
        store: open for reading, in a context in which all reads see one state.

    Attributes:
        vectors: (n, E) float32, unit rows; read by slices and arrays of rows.
        columns: `COLUMNS` (n,), of them
        id: (n,) int64, ascending;
        file: (n,) int64: the id of the file of each row;
        modality: (n,) int8: place in `modalities`, those of the index;
        is_mapped: whether all of them are mapped from the file.
    """

    def __init__(self, store: Store) -> None:
        self.folder = store.folder
        self.modalities = store.modalities
        self.in_files = _Files.of(store)
        path = self.in_files.vectors_in(store.folder)
        self.columns = {name: np.empty(0, dtype) for name, dtype in COLUMNS.items()}
        self.vectors: Any = np.empty((0, store.embed_dim), VECTOR)
        content = read_derived(path, self.in_files.token, most_checked=VERIFIED)
        if content is not None:
            self.columns = {name: content.arrays[name] for name in COLUMNS}
            self.vectors = content.arrays["vectors"]
        elif path.exists():  # one that is gone was replaced by an update just now
            log.warning(LOST, path, update_again(store.folder))
        self.is_mapped = content is not None and self.in_files.state == vectors_state(store)
        if not self.is_mapped:
            self._read_changes(store)
        self.id = self.columns["id"]
        self.file = self.columns["file"]
        self.modality = self.columns["modality"]

    def _read_changes(self, store: Store) -> None:
        """Leave out what has been removed since the file was written, and add what is new."""
        ids = self.columns["id"]
        last = int(ids[-1]) if len(ids) else 0
        kept_ids = store.select("SELECT id FROM vectors WHERE id <= ?", (last,))
        kept = np.flatnonzero(np.isin(ids, np.array(kept_ids, np.int64)))
        added = [*read(store, last)]
        self.vectors = _Changed(self.vectors, kept, np.concatenate([vectors for _, vectors in added]))
        columns = {}
        for name, column in self.columns.items():
            columns[name] = np.concatenate([column[kept], *(rows[name] for rows, _ in added)])
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
        """Rows of each modality, ascending."""
        return [np.flatnonzero(self.modality == code) for code in range(len(self.modalities))]

    def span(self, row: int) -> Span:
        """The part of a file that a row stands for."""
        modality = self.modalities[self.modality[row]]
        return Span(modality, _seconds(self.columns["start"][row]), _seconds(self.columns["end"][row]))

    def nearest(
        self,
        query: np.ndarray,
        count: int,
        allowed: np.ndarray | None = None,
        vector_database: Any = None,
    ) -> dict[str, Neighbours]:
        """The rows of each modality that are nearest to a unit vector.

        Args:
            query: (E,) float32.
            count: maximum number of rows per modality.
            allowed: (n,) bool; None = all.
            vector_database: one (see `plugin`), which proposes candidates instead of the lists.
        """
        search = _Search(self, query, count, allowed, vector_database)
        neighbours = {}
        for code, modality in enumerate(self.modalities):
            best = search.best(code)
            if len(best.rows):
                neighbours[modality] = best
        return neighbours

    @cached_property
    def lists(self) -> dict[int, Lists]:
        """Lists by the place of their modality; none if FAISS is not installed."""
        lists: dict[int, Lists] = {}
        if not self.in_files.lists or faiss() is None:  # a small index imports no FAISS
            return lists
        folder = self.folder
        for modality, file in self.in_files.lists.items():
            if file.is_intact(folder, self.vectors.shape[1]):
                lists[self.modalities.index(modality)] = Lists(folder, file)
            elif (folder / file.name).exists():
                log.warning(LOST, folder / file.name, update_again(folder))
        return lists

    @cached_property
    def selections(self) -> dict[int, Selection]:
        """All rows of each modality with lists."""
        return {code: lists.select(self.id, self.modality == code) for code, lists in self.lists.items()}

    def outdated_lists(self) -> list[str]:
        """Modalities whose lists would help, and are missing, or of vectors too many of which have changed."""
        if len(self) < LARGE or faiss() is None:
            return []
        modalities = zip(self.modalities, self.rows, strict=True)
        return [modality for modality, rows in modalities if len(rows) >= LARGE and self._is_outdated(modality, rows)]

    def _is_outdated(self, modality: str, rows: np.ndarray) -> bool:
        lists = self.lists.get(self.modalities.index(modality))
        if lists is None:
            return True
        num_changed = len(rows) + len(lists) - 2 * lists.num_rows(self.id[rows])
        return num_changed > UNLISTED * len(rows)


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
    vector_database: Any

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
        if self.vector_database is None:
            lists = self.matrix.lists.get(code)
            if lists is None:
                return np.empty(0, np.int64)
            is_all = self.allowed is None
            selection = self.matrix.selections[code] if is_all else lists.select(self.matrix.id, wanted)
            return lists.propose(self.query, LISTED * self.count, selection)
        ids = self.vector_database.candidates(self.query, CANDIDATES * self.count, code)
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
    lost = list(faults(store))
    if lost:
        log.warning("%s: %s; it is written again", store.folder, ", ".join(lost))
        remove_derived(store.folder)
        store.meta.pop(DERIVED, None)
    matrix = Matrix(store)
    try:
        if not matrix.is_mapped or matrix.outdated_lists():
            _write(store, matrix)
    except OSError as error:
        log.warning("%s: the vectors cannot be copied (%s); searching takes longer", store.folder, one_line(error))
    finally:
        remove_derived(store.folder, but=_Files.of(store).names())


def faults(store: Store) -> Iterator[str]:
    """Yield one line for each derived file that is not what was written; reads all of them."""
    files = _Files.of(store)
    if files.token and read_derived(files.vectors_in(store.folder), files.token) is None:
        yield f"{files.vectors_in(store.folder).name} is not what was written"
    for file in files.lists.values():
        if not file.is_intact(store.folder, store.embed_dim, whole=True):
            yield f"{file.name} is not what was written"


def _write(store: Store, matrix: Matrix) -> None:
    """Write the derived files, and then their names to the database.

    Raises:
        OSError: the disk is full or not writable.
    """
    if len(matrix) >= LARGE and faiss() is None:
        log.info("%s: faiss is not installed, so every vector is compared (extra index)", store.folder)
    lists = dict(matrix.in_files.lists)
    for modality in matrix.outdated_lists():
        rows = matrix.rows[store.modalities.index(modality)]
        lists[modality] = write_lists(store.folder, matrix.id, matrix.vectors, rows)
    files = _Files(secrets.token_hex(8), vectors_state(store), lists)
    path = files.vectors_in(store.folder)
    write_derived(path, files.token, {"vectors": matrix.vectors, **matrix.columns})
    sync(path)
    sync(store.folder)
    with store.transaction():
        store.meta[DERIVED] = json.dumps(asdict(files))
