"""The vectors of an index as one matrix, and the nearest of them to a query.

Most vectors are mapped from files that are copied from the database, so that none is read when an index is opened:

    vectors-TOKEN.bin   (n, E) float32 by ascending id, and (n,) `ROW`, what each vector is of (files/derived.py)
    lists-TOKEN.faiss   from `LARGE` vectors on, if FAISS is installed (extra `index`): inverted lists (Johnson et al.,
                        arXiv 1702.08734), which propose candidates that are compared exactly

The database has their token, so files of another state are not used; the digest of a file up to `VERIFIED` bytes is
compared when it is opened, that of a larger one by `index check`. What was added after they were written is read from
the database (the tail), what was removed since is listed there (the table "gone").
"""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.errors import one_line
from onepeace.files.atomic import sync
from onepeace.files.derived import Blocks, read_derived, write_derived
from onepeace.index.database import VECTOR, Damaged, Store
from onepeace.index.items import Span
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

ROW = np.dtype([("id", "<i8"), ("file", "<i8"), ("start", "<f8"), ("end", "<f8"), ("modality", "<i8")])
"""What a vector is of: its id and that of its file, the seconds that it covers (NaN = the whole file), and the place of
its modality in `Store.modalities`."""
DERIVED = "derived"
"""Entry of the metadata with the token of the files, and the length and digests of the lists."""
VERIFIED = 1 << 23
"""Bytes up to which a file is compared with its digest when it is opened, in 10 ms at most."""
CHUNK = 1 << 20
"""Bytes of a file that are read at once for its digest."""
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
CANDIDATES = 10
"""Candidates requested per vector wanted."""
BLOCK = 1 << 14
"""Vectors per task of the thread pool; BLAS itself runs single-threaded, as its threads would busy-wait."""
ROUNDING = 1e-6
GATHERED = 0.2
"""Share of rows below which gathering them is faster than comparing all."""
LOST = "%s: not what was written, and not used; searching takes longer; to write it again: onepeace index update %s"


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
    """Rows (k,) of type `ROW` and vectors (k, E) in the database with an id above ``after``, in blocks, one at least.

    Raises:
        Damaged: a value has another type or length.
    """
    blob = np.dtype((np.void, store.embed_dim * VECTOR.itemsize))
    record = np.dtype([*ROW.descr, ("vector", blob)])
    sql = 'SELECT id, file, "start", "end", modality, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?'
    while True:
        values = store.select(sql, (after, READ))
        try:
            records = np.array(values, record)  # None is NaN in a float column
        except (TypeError, ValueError, OverflowError) as error:
            raise Damaged(store.folder, error) from error
        blobs = np.ascontiguousarray(records["vector"])
        vectors = blobs.view(VECTOR).reshape(-1, store.embed_dim)
        yield records[[*(ROW.names or ())]].astype(ROW), vectors
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
        rows: (n,) `ROW`; vectors: (n, E). If the files are missing or damaged, both are empty.
        are_used: whether they are not.
    """

    def __init__(self, store: Store) -> None:
        about = json.loads(store.meta.get(DERIVED, "{}"))
        self.token: str = about.get("token", "")
        self.path = store.folder / f"vectors-{self.token}.bin"
        self.lists_path = store.folder / f"lists-{self.token}.faiss"
        self._lists_about = about.get("lists")
        self.rows = np.empty(0, ROW)
        self.vectors = np.empty((0, store.embed_dim), VECTOR)
        self._size = self.path.stat().st_size if self.path.exists() else 0
        content = read_derived(self.path, self.token, checked=self._size <= VERIFIED) if self._size else None
        self.are_used = content is not None
        if content is not None:
            self.rows = content.arrays["rows"].view(ROW)
            self.vectors = content.arrays["vectors"]
        elif self.token:
            log.warning(LOST, self.path, store.folder)

    def are_whole(self) -> bool:
        """Whether none was cut short while it is mapped; reading past the end of one is a bus error."""
        if self.are_used and self.path.exists() and self.path.stat().st_size < self._size:
            return False
        return self.lists is None or not self.lists_path.exists() or self._lists_are_whole()

    def _lists_are_whole(self) -> bool:
        return self.lists_path.stat().st_size == self._lists_about["size"]

    def faults(self) -> Iterator[str]:
        """Yield one line for each file that is not what was written; reads all of them."""
        if self.token and read_derived(self.path, self.token) is None:
            yield f"{self.path.name} is not what was written"
        if self._lists_about and (
            not self.lists_path.exists() or digest_of(self.lists_path) != self._lists_about["digest"]
        ):
            yield f"{self.lists_path.name} is not what was written"

    @cached_property
    def lists(self) -> Any:
        """The lists over the rows, opened by FAISS; None if there are none, or FAISS is not installed."""
        if not self.are_used or not self._lists_about or not self.lists_path.exists():
            return None
        # FAISS reads beyond the end of a file whose head is damaged; damage elsewhere only costs candidates.
        head = digest_of(self.lists_path, head_bytes(self.vectors.shape[1]))
        if not self._lists_are_whole() or head != self._lists_about["head"]:
            log.warning(LOST, self.lists_path, self.lists_path.parent)
            return None
        faiss = _faiss()
        if faiss is None:
            return None
        return faiss.read_index(os.fspath(self.lists_path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def digest_of(path: Path, most: int = -1) -> str:
    """Digest of a file, or of its first bytes."""
    digest = blake2b(digest_size=16)
    with open(path, "rb") as file:
        if most >= 0:
            digest.update(file.read(most))
        else:
            for chunk in iter(lambda: file.read(CHUNK), b""):
                digest.update(chunk)
    return digest.hexdigest()


@cache
def _faiss() -> Any:
    """The module faiss; None if it is not installed."""
    try:
        return import_module("faiss")
    except ImportError:
        return None


def head_bytes(embed_dim: int) -> int:
    """Bytes of lists before the vectors in them: centroids and lengths."""
    return LISTS * (4 * embed_dim + 8) + (1 << 12)


class Matrix:
    """All vectors of one state of an index, n of them. A row is the number of a vector in it.

    Args:
        store: open for reading, in a context in which all reads see one state.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.mapped = Files(store)
        self._left: np.ndarray | None = None
        """Number of each row of the files that is not gone; None = all."""
        last = int(self.mapped.rows["id"][-1]) if len(self.mapped.rows) else 0
        tail = [*read(store, last)]
        self._tail = np.concatenate([vectors for _, vectors in tail])
        self.entries = self.mapped.rows
        """(n,) `ROW`."""
        if self.mapped.are_used:
            gone = [id_ for (id_,) in store.select("SELECT id FROM gone WHERE id <= ?", (last,))]
            if gone:
                is_left = np.ones(len(self.mapped.rows), bool)
                is_left[np.searchsorted(self.mapped.rows["id"], gone)] = False
                self._left = np.flatnonzero(is_left)
                self.entries = self.mapped.rows[self._left]
        self._num_mapped = len(self.entries)
        if len(self._tail):
            self.entries = np.concatenate([self.entries, *(rows for rows, _ in tail)])

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def vectors(self) -> np.ndarray:
        """(n, E) float32, unit rows; a copy if they are not all in the files, so better ask for `vectors_of` some."""
        return self.vectors_of(slice(None))

    def vectors_of(self, rows: Any) -> np.ndarray:
        """(k, E) float32 vectors of k rows, or (E,) of one."""
        if self._left is None and not len(self._tail):
            return self.mapped.vectors[rows]
        numbers = np.arange(len(self))[rows]
        is_mapped = numbers < self._num_mapped
        mapped = numbers[is_mapped] if self._left is None else self._left[numbers[is_mapped]]
        vectors = np.empty((*numbers.shape, self.store.embed_dim), VECTOR)
        vectors[is_mapped] = self.mapped.vectors[mapped]
        vectors[~is_mapped] = self._tail[numbers[~is_mapped] - self._num_mapped]
        return vectors

    def cosines(self, query: np.ndarray) -> np.ndarray:
        """(n,) float32: cosine of each row with a unit vector (E,); -inf where it is not finite."""
        mapped = _cosines(self.mapped.vectors, query)
        if self._left is not None:
            mapped = mapped[self._left]
        return np.concatenate([mapped, _cosines(self._tail, query)]) if len(self._tail) else mapped

    @cached_property
    def id(self) -> np.ndarray:
        """(n,) int64: the id of each row, ascending."""
        return np.ascontiguousarray(self.entries["id"])

    @property
    def file(self) -> np.ndarray:
        """(n,) int64: the id of the file of each row."""
        return self.entries["file"]

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
        return self.entries["modality"].astype(np.int8)

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
        entries = self.entries[row]
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

    def listed(self, query: np.ndarray, count: int, code: int, allowed: np.ndarray | None) -> np.ndarray | None:
        """Rows of a modality that the lists propose, and all of them in the tail; None without lists.

        Args:
            allowed: (n,) bool, rows of which the best are asked for; None = all.
        """
        lists = self.mapped.lists if len(self) >= LARGE else None
        if lists is None:
            return None
        faiss = _faiss()
        wanted = self.modality == code
        if allowed is not None:
            wanted &= allowed
        is_wanted = wanted[: self._num_mapped]
        if self._left is not None:
            is_wanted = np.zeros(len(self.mapped.rows), bool)
            is_wanted[self._left] = wanted[: self._num_mapped]
        selector = faiss.IDSelectorBitmap(np.packbits(is_wanted, bitorder="little"))
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=PROBED)
        with one_blas_thread():
            _, ((*numbers,),) = lists.search(query[None], count, params=parameters)
        near = np.array([number for number in numbers if number >= 0], np.int64)
        if self._left is not None:
            near = np.searchsorted(self._left, near)
        return np.concatenate([near, self._num_mapped + np.flatnonzero(wanted[self._num_mapped :])])


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
        rows = self.matrix.rows[code]
        if self.allowed is not None:
            rows = rows[self.allowed[rows]]
        if len(rows) <= self.count:
            return rows
        if len(rows) > GATHERED * len(self.matrix):
            proposed = self._proposed(code, rows)
            if len(proposed) >= self.count:
                return proposed
        return self._compared(rows)

    def _proposed(self, code: int, rows: np.ndarray) -> np.ndarray:
        """Those of some rows that the vector database or the lists propose; too few if these do not answer."""
        num_candidates = CANDIDATES * self.count
        if self.service is None:
            proposed = self.matrix.listed(self.query, num_candidates, code, self.allowed)
            return np.empty(0, np.int64) if proposed is None else self._compared(proposed)
        ids = self.service.candidates(self.query, num_candidates, code)
        if ids is None:
            return np.empty(0, np.int64)
        return rows[np.isin(self.matrix.id[rows], ids)]

    def _compared(self, rows: np.ndarray) -> np.ndarray:
        """The best of some rows, and those as good but for rounding, as BLAS may round equal rows differently."""
        if len(rows) <= self.count:
            return rows
        if len(rows) < GATHERED * len(self.matrix):
            cosines = _cosines(self.matrix.vectors_of(rows), self.query)
        else:
            cosines = self._all_cosines[rows]
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
                for name in (f"vectors-{token}.bin", f"lists-{token}.faiss"):
                    (store.folder / name).unlink(missing_ok=True)
                raise
        remove_derived(store.folder, but=json.loads(store.meta[DERIVED])["token"])
    except OSError as error:
        log.warning("%s: the vectors cannot be copied (%s); searching takes longer", store.folder, one_line(error))


def is_stale(store: Store) -> bool:
    """Whether the derived files lack so many of the vectors, or have so many others, that they are written anew."""
    files = Files(store)
    last = int(files.rows["id"][-1]) if len(files.rows) else 0
    ((num_added,),) = store.select("SELECT count(*) FROM vectors WHERE id > ?", (last,))
    ((num_gone,),) = store.select("SELECT count(*) FROM gone WHERE id <= ?", (last,))
    allowed = 0 if len(files.rows) < FEW else MOST_CHANGES
    return not files.are_used or num_added + num_gone > allowed


def _write(store: Store, token: str) -> dict[str, Any]:
    """Write the derived files, and return the entry `DERIVED` of the metadata.

    Raises:
        OSError: the disk is full or not writable.
    """
    path = store.folder / f"vectors-{token}.bin"
    ((count,),) = store.select("SELECT count(*) FROM vectors")
    rows = np.empty(count, ROW)

    def vectors() -> Iterator[np.ndarray]:
        start = 0
        for rows_of_block, vectors_of_block in read(store):
            rows[start : start + len(rows_of_block)] = rows_of_block
            start += len(rows_of_block)
            yield vectors_of_block

    blocks = Blocks((count, store.embed_dim), VECTOR, vectors())
    write_derived(path, token, {"vectors": blocks, "rows": rows.view(np.uint8)})  # the rows are known by then
    sync(path)
    about: dict[str, Any] = {"token": token}
    if count >= LARGE:
        content = read_derived(path, token, checked=False)
        if content is not None:
            about["lists"] = _write_lists(content.arrays["vectors"], store.folder / f"lists-{token}.faiss")
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
    half = faiss.ScalarQuantizer.QT_fp16
    quantizer = faiss.IndexFlatIP(embed_dim)
    lists = faiss.IndexIVFScalarQuantizer(quantizer, embed_dim, LISTS, half, faiss.METRIC_INNER_PRODUCT)
    lists.train(np.ascontiguousarray(vectors[np.sort(chosen)]))
    for start in range(0, count, READ):
        lists.add(np.ascontiguousarray(vectors[start : start + READ]))
    try:
        faiss.write_index(lists, os.fspath(path))
    except RuntimeError as error:
        raise OSError(one_line(error)) from error
    sync(path)
    return {"size": path.stat().st_size, "digest": digest_of(path), "head": digest_of(path, head_bytes(embed_dim))}


def faults(store: Store) -> Iterator[str]:
    """Yield one line for each derived file that is not what was written, or not what the database has; reads all."""
    matrix = Matrix(store)
    found = [*matrix.mapped.faults()]
    yield from found
    if found or not matrix.mapped.are_used:
        return
    start = 0
    for rows, vectors in read(store):
        block = slice(start, start + len(rows))
        is_same = rows.tobytes() == matrix.entries[block].tobytes()
        if not is_same or vectors.tobytes() != matrix.vectors_of(block).tobytes():
            yield "the copy of the vectors is not what the database has"
            return
        start += len(rows)
