"""The vectors of an index as one matrix, and the nearest of them to a query.

Most vectors are mapped from files that are copied from the database, so that none is read when an index is opened:

    vectors-TOKEN.bin   the vectors by ascending id, and what each is of: `COLUMNS` (files/derived.py)
    lists-TOKEN.faiss   from `LARGE` vectors on, if FAISS is installed (extra `index`): inverted lists (Johnson et al.,
                        arXiv 1702.08734), which propose candidates that are compared exactly

The database has their token, so files of another state are not used; the digest of a file up to `VERIFIED` bytes is
compared when it is opened, that of a larger one by `index check` and `index update`. What was added after they were
written is read from the database (the tail), what was removed since is listed there (the table "gone").
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
from onepeace.files.derived import Blocks, read_derived, write_derived
from onepeace.files.sums import sha256_of
from onepeace.index.database import VECTOR, Damaged, Store, update_again
from onepeace.index.items import Span
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

COLUMNS = {"id": "<i8", "file": "<i8", "start": "<f8", "end": "<f8", "modality": "i1"}
"""What a vector is of: its id and that of its file, the seconds that it covers (NaN = the whole file), and the place of
its modality in `Store.modalities`."""
DERIVED = "derived"
"""Entry of the metadata with the token of the files, and the length and digests of the lists."""
VERIFIED = 1 << 23
"""Bytes up to which a file is compared with its digest when it is opened, in 10 ms at most."""
READ = 1 << 13
"""Vectors read from the database, or written to a file, at once."""
MOST_CHANGES = 2000
"""Vectors that may have been added or removed since the files were written, as it takes 10 ms to read so many from the
database ..."""
FEW = 20_000
"""... from so many vectors on; the files of a smaller index are written after each change, in 0.1 s."""
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


class Files:
    """The derived files of one state of an index.

    Attributes:
        columns: `COLUMNS` (n,); vectors: (n, E). If the file is missing or damaged, all are empty.
        are_used: whether it is not.
    """

    def __init__(self, store: Store) -> None:
        about = json.loads(store.meta.get(DERIVED, "{}"))
        self.token: str = about.get("token", "")
        self.path, self.lists_path = _paths(store.folder, self.token)
        self._lists_about = about.get("lists")
        content = read_derived(self.path, _key(self.token), most_checked=VERIFIED) if self.token else None
        self.are_used = content is not None
        self._sizes: dict[Path, int] = {}
        """Bytes of the files that are mapped."""
        self.columns = {name: np.empty(0, dtype) for name, dtype in COLUMNS.items()}
        self.vectors = np.empty((0, store.embed_dim), VECTOR)
        if content is not None:
            self.columns = {name: content.arrays[name] for name in COLUMNS}
            self.vectors = content.arrays["vectors"]
            self._sizes[self.path] = self.path.stat().st_size

    def are_whole(self) -> bool:
        """Whether none was cut short while it is mapped; reading past the end of one is a bus error."""
        return all(not path.exists() or path.stat().st_size >= size for path, size in self._sizes.items())

    @property
    def last(self) -> int:
        """The largest id."""
        return int(self.columns["id"][-1]) if len(self.vectors) else 0

    def faults(self) -> Iterator[str]:
        """Yield one line for each file that is not what was written; reads all of them."""
        if self.token and read_derived(self.path, _key(self.token)) is None:
            yield f"{self.path.name} is not what was written"
        if self._lists_about and (
            not self.lists_path.exists() or sha256_of(self.lists_path) != self._lists_about["digest"]
        ):
            yield f"{self.lists_path.name} is not what was written"

    @cached_property
    def lists(self) -> Any:
        """The lists over the rows, opened by FAISS; None if there are none, or FAISS is not installed."""
        if not self.are_used or not self._lists_about or not self.lists_path.exists():
            return None
        # FAISS reads beyond the end of a file that is cut off, or whose head is damaged; damage elsewhere only costs
        # candidates.
        head = _digest_of_head(self.lists_path, self.vectors.shape[1])
        if self.lists_path.stat().st_size != self._lists_about["size"] or head != self._lists_about["head"]:
            log.warning(LOST, self.lists_path, update_again(self.lists_path.parent))
            return None
        faiss = _faiss()
        if faiss is None:
            return None
        self._sizes[self.lists_path] = self._lists_about["size"]
        lists = faiss.read_index(os.fspath(self.lists_path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        faiss.downcast_InvertedLists(lists.invlists).prefetch_nthread = 0  # to start 32 threads takes 1 ms a query
        return lists


def _paths(folder: Path, token: str) -> tuple[Path, Path]:
    """Names of the derived files of a token."""
    return folder / f"vectors-{token}.bin", folder / f"lists-{token}.faiss"


def _key(token: str) -> list[str]:
    """Key of the file of vectors of a token."""
    return [token, *COLUMNS]


def _digest_of_head(path: Path, embed_dim: int) -> str:
    """Digest of what lists have before the vectors in them: centroids and lengths."""
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(LISTS * (4 * embed_dim + 8) + (1 << 12))).hexdigest()


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
        columns: `COLUMNS` (n,), of them
        id: (n,) int64, ascending;
        file: (n,) int64: the id of the file of each row;
        modality: (n,) int8: place in `Store.modalities`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.mapped = files = Files(store)
        if files.token and not files.are_used:
            log.warning(LOST, files.path, update_again(store.folder))
        tail = [*read(store, files.last)]
        self._tail = np.concatenate([vectors for _, vectors in tail])
        columns = files.columns
        self._place: np.ndarray | None = None
        """(n,) int64: number of each row among the vectors of the files, gone ones too, then those of the tail; None if
        it is the row."""
        gone = [id_ for (id_,) in store.select("SELECT id FROM gone WHERE id <= ?", (files.last,))]
        if gone or len(self._tail):
            is_left = np.ones(len(files.vectors) + len(self._tail), bool)
            is_left[np.searchsorted(columns["id"], gone)] = False
            self._place = np.flatnonzero(is_left)
            columns = {}
            for name, column in files.columns.items():
                columns[name] = np.concatenate([column, *(rows[name] for rows, _ in tail)])[self._place]
        self.columns = columns
        self.id = columns["id"]
        self.file = columns["file"]
        self.modality = columns["modality"]

    def __len__(self) -> int:
        return len(self.id)

    @cached_property
    def vectors(self) -> np.ndarray:
        """(n, E) float32, unit rows; a copy if they are not all in the files, so better ask for `vectors_of` some."""
        return self.vectors_of(slice(None))

    def vectors_of(self, rows: Any) -> np.ndarray:
        """(k, E) float32 vectors of k rows, or (E,) of one."""
        if self._place is None:
            return self.mapped.vectors[rows]
        places = self._place[rows]
        num_copied = len(self.mapped.vectors)
        is_copied = places < num_copied
        vectors = np.empty((*places.shape, self.store.embed_dim), VECTOR)
        vectors[is_copied] = self.mapped.vectors[places[is_copied]]
        vectors[~is_copied] = self._tail[places[~is_copied] - num_copied]
        return vectors

    def cosines(self, query: np.ndarray) -> np.ndarray:
        """(n,) float32: cosine of each row with a unit vector (E,); -inf where it is not finite."""
        cosines = _cosines(self.mapped.vectors, query)
        if self._place is None:
            return cosines
        return np.concatenate([cosines, _cosines(self._tail, query)])[self._place]

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

    def listed(self, query: np.ndarray, count: int, wanted: np.ndarray) -> np.ndarray:
        """Rows that the lists propose, and all wanted ones that are not in them; none without lists.

        Args:
            wanted: (n,) bool, rows of which the best are asked for.
        """
        lists = self.mapped.lists if len(self) >= LARGE else None
        if lists is None:
            return np.empty(0, np.int64)
        num_copied = len(self.mapped.vectors)
        is_wanted = wanted
        if self._place is not None:
            is_wanted = np.zeros(num_copied + len(self._tail), bool)
            is_wanted[self._place[wanted]] = True
        faiss = _faiss()
        parameters = faiss.SearchParametersIVF(nprobe=PROBED)
        if not is_wanted[:num_copied].all():
            parameters.sel = faiss.IDSelectorBitmap(np.packbits(is_wanted[:num_copied], bitorder="little"))
        with one_blas_thread():
            _, (numbers,) = lists.search(query[None], count, params=parameters)
        places = np.concatenate([numbers[numbers >= 0], num_copied + np.flatnonzero(is_wanted[num_copied:])])
        return places if self._place is None else np.searchsorted(self._place, places)


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
        vectors = self.matrix.vectors_of(near)
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
        return self._best_of(rows, _cosines(self.matrix.vectors_of(rows), self.query))

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
        return self.matrix.cosines(self.query)


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
    """Write the derived files of an index that is open for writing, unless they are good enough.

    If the disk is full, a warning is logged instead: the files only save time.
    """
    try:
        if is_stale(store):
            token = secrets.token_hex(8)
            try:
                about = _write(store, token)
                with store.transaction():
                    store.connection.execute("DELETE FROM gone")
                    store.meta[DERIVED] = json.dumps(about)
            except BaseException:
                for path in _paths(store.folder, token):
                    path.unlink(missing_ok=True)
                raise
        remove_derived(store.folder, but=json.loads(store.meta[DERIVED])["token"])
    except OSError as error:
        log.warning("%s: the vectors cannot be copied (%s); searching takes longer", store.folder, one_line(error))


def is_stale(store: Store) -> bool:
    """Whether the derived files are not as they were written, or lack so many of the vectors, or have so many others,
    that they are written anew."""
    files = Files(store)
    ((num_added,),) = store.select("SELECT count(*) FROM vectors WHERE id > ?", (files.last,))
    ((num_gone,),) = store.select("SELECT count(*) FROM gone WHERE id <= ?", (files.last,))
    allowed = 0 if len(files.vectors) < FEW else MOST_CHANGES
    return not files.are_used or num_added + num_gone > allowed or any(files.faults()) or _lacks_lists(files)


def _lacks_lists(files: Files) -> bool:
    return len(files.vectors) >= LARGE and _faiss() is not None and files.lists is None


def _write(store: Store, token: str) -> dict[str, Any]:
    """Write the derived files, and return the entry `DERIVED` of the metadata.

    Raises:
        OSError: the disk is full or not writable.
    """
    path, lists_path = _paths(store.folder, token)
    ((count,),) = store.select("SELECT count(*) FROM vectors")
    columns = {name: np.empty(count, dtype) for name, dtype in COLUMNS.items()}

    def vectors() -> Iterator[np.ndarray]:
        start = 0
        for rows, vectors_of_rows in read(store):
            for name, column in columns.items():
                column[start : start + len(rows)] = rows[name]
            start += len(rows)
            yield vectors_of_rows

    blocks = Blocks((count, store.embed_dim), VECTOR, vectors())
    write_derived(path, _key(token), {"vectors": blocks, **columns})  # the columns are known by then
    sync(path)
    about: dict[str, Any] = {"token": token}
    if count >= LARGE:
        content = read_derived(path, _key(token), most_checked=0)
        if content is not None:
            about["lists"] = _write_lists(content.arrays["vectors"], lists_path)
    sync(store.folder)
    return about


def _write_lists(vectors: np.ndarray, path: Path) -> dict[str, Any] | None:
    """Write inverted lists over all rows, whose numbers are those of the rows; None if FAISS is not installed."""
    faiss = _faiss()
    if faiss is None:
        log.info("%s: faiss is not installed, so every vector is compared (extra index)", path.parent)
        return None
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
    return {"size": path.stat().st_size, "digest": sha256_of(path), "head": _digest_of_head(path, embed_dim)}


def is_as_stored(store: Store) -> bool:
    """Whether the matrix has what the database has; reads all."""
    matrix = Matrix(store)
    start = 0
    for rows, vectors in read(store):
        block = slice(start, start + len(rows))
        for name, column in matrix.columns.items():
            if not np.array_equal(column[block], rows[name], equal_nan=name in ("start", "end")):
                return False
        if vectors.tobytes() != matrix.vectors_of(block).tobytes():
            return False
        start += len(rows)
    return start == len(matrix)
