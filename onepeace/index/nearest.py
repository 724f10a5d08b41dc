"""The vectors of an index as one matrix, and nearest-neighbour search in it.

The matrix is a memory-mapped file derived from the database. From `LARGE` vectors on, inverted lists of FAISS (if it is
installed) propose candidates, as a vector database may; candidates are compared exactly. Both files are named
KIND-LAST-REMOVED-CRC: the last vector id and the number of removals of the index when they were written, and the CRC-32
of their content. A file that does not match is ignored, and replaced by the next writer; without a matrix, the vectors
are read from the database.
"""

import logging
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.errors import one_line
from onepeace.index.database import Damaged
from onepeace.index.store import VECTOR, Store
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

MATRIX, LISTS = "matrix", "lists"
LOCAL = "local"
"""Value of ``meta["store"]`` if no vector database is used."""
READ = 1 << 13
"""Vectors read from the database at once."""
LARGE = 250_000
"""Number of vectors from which on lists are used: exact search takes 5 ms for 100,000 vectors, 45 ms for a million."""
STALE = 1.1
"""The lists are rebuilt if they would hold more than this many times the vectors of the index."""
PROBED, TRAINED = 48, 200_000
"""Lists that a query probes (nprobe), and vectors that the centroids are trained on."""
CANDIDATES = 10
"""Candidates requested per vector wanted."""
BLOCK = 1 << 14
"""Vectors per task of the thread pool; BLAS itself runs single-threaded, as its threads would busy-wait."""
ROUNDING = 1e-6
GATHERED = 0.2
"""Share of rows below which gathering them is faster than comparing all."""


def record_type(embed_dim: int) -> np.dtype:
    """Record of a vector in the matrix; its size is a multiple of 8 bytes, so that BLAS reads the vectors in place."""
    numbers = [("id", "<i8"), ("file", "<i8"), ("start", "<f8"), ("end", "<f8"), ("modality", "<i8")]
    return np.dtype([*numbers, ("vector", VECTOR, (embed_dim,))])


class Neighbours(NamedTuple):
    """Rows near a query, best first, ties by row."""

    rows: np.ndarray
    """(k,) int64."""
    cosines: np.ndarray
    """(k,) float32."""


class Matrix:
    """All vectors of one state of an index, n of them.

    Args:
        store: open for reading.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.path, content = _current(store, MATRIX)
        """Path of the mapped file, if there is one."""
        mapped = None if content is None else content.view(record_type(store.embed_dim))
        self.records = np.concatenate([*read(store)]) if mapped is None else mapped
        self._lists = _Lists.open(self) if len(self.records) >= LARGE else None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def vectors(self) -> np.ndarray:
        """(n, E) float32, unit rows."""
        return self.records["vector"]

    @cached_property
    def id(self) -> np.ndarray:
        """(n,) int64: the id of each row, ascending."""
        return np.ascontiguousarray(self.records["id"])

    @cached_property
    def file(self) -> np.ndarray:
        """(n,) int64: the id of the file of each row."""
        return np.ascontiguousarray(self.records["file"])

    @cached_property
    def files(self) -> tuple[np.ndarray, np.ndarray]:
        """(f,) int64 ids of the files, ascending, and (n,) the place among them of the file of each row."""
        return np.unique(self.file, return_inverse=True)

    @cached_property
    def modality(self) -> np.ndarray:
        """(n,) int8: place in `Store.kinds`."""
        return self.records["modality"].astype(np.int8)

    @cached_property
    def rows(self) -> list[np.ndarray]:
        """Rows of each of `Store.kinds`, ascending."""
        return [np.flatnonzero(self.modality == code) for code in range(len(self.store.kinds))]

    def times(self, row: int) -> tuple[float | None, float | None]:
        """Start and end in seconds of the part that a row stands for; None for the whole file."""
        start, end = (float(self.records[name][row]) for name in ("start", "end"))
        return (None if np.isnan(start) else start), (None if np.isnan(end) else end)

    def nearest(
        self, query: np.ndarray, count: int, allowed: np.ndarray | None = None, service: Any = None
    ) -> dict[str, Neighbours]:
        """The rows of each modality that are nearest to a unit vector.

        Args:
            query: (E,) float32.
            count: maximum number of rows per modality.
            allowed: (n,) bool; None = all.
            service: a vector database (see `plugin`), which proposes candidates instead of the lists.
        """
        source, compared, found = service or self._lists, None, {}
        for code, modality in enumerate(self.store.kinds):
            own = self.rows[code] if allowed is None else self.rows[code][allowed[self.rows[code]]]
            rows = own
            if len(own) > count:
                is_large = len(own) >= GATHERED * len(self)
                named = source.candidates(query, CANDIDATES * count, code) if source and is_large else None
                rows = own[:0] if named is None else _among(own, np.searchsorted(self.id, _among(self.id, named)))
            if len(rows) < min(count, len(own)):  # the source does not answer, or ignores what is allowed
                if is_large and compared is None:
                    compared = _cosines(self.vectors, query)
                near = _cosines(self.vectors[own], query) if compared is None else compared[own]
                least = np.partition(near, -count)[-count]
                rows = own[near >= least - ROUNDING]  # includes all ties, as BLAS may round them differently
            if len(rows):
                found[modality] = _exact(self.vectors, query, rows, count)
        return found

    def is_whole(self) -> bool:
        """Whether the mapped file still has its full length; reading past the end of a truncated one is a bus error."""
        with suppress(OSError):  # a file that was deleted stays mapped
            return self.path is None or os.stat(self.path).st_size >= self.records.nbytes
        return True


def _among(rising: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values that occur in an ascending, non-empty array."""
    return values[np.take(rising, np.searchsorted(rising, values), mode="clip") == values]


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


def _exact(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, count: int) -> Neighbours:
    """The best of some rows, by float64 sums that depend only on the row, so that equal rows have equal cosines."""
    cosines = (vectors[rows] * query.astype(np.float64)).sum(axis=1)
    order = np.lexsort((rows, -cosines))[:count]
    return Neighbours(rows[order], np.clip(cosines[order], -1, 1).astype(np.float32))


def vectors_state(store: Store) -> str:
    """State of an index's vectors, LAST-REMOVED, as in the names of its files."""
    ((last,),) = store.select("SELECT max(id) FROM vectors")
    return f"{last or 0}-{store.meta['removed']}"


def keep(store: Store) -> None:
    """Update the matrix, and the lists if there are many vectors, to the state of the database.

    If the disk is full, a warning is logged instead: the files only save time.
    """
    try:
        if _current(store, MATRIX)[0] is None:
            _replace(store, MATRIX, (records.tobytes() for records in read(store)))
        if store.select("SELECT count(*) FROM vectors")[0][0] >= LARGE and _current(store, LISTS)[0] is None:
            _keep_lists(Matrix(store))
    except OSError as error:
        log.warning("%s: %s cannot be written (%s); searching takes longer", store.folder, MATRIX, one_line(error))


def derived(folder: Path) -> list[Path]:
    """Files of an index that are derived from its database."""
    return [*folder.glob(f"{MATRIX}-*"), *folder.glob(f"{LISTS}-*")]


def _current(store: Store, kind: str) -> tuple[Path | None, np.ndarray | None]:
    """File of a kind for the current state of an index, and its content; None if it is missing or damaged."""
    for path in store.folder.glob(f"{kind}-{vectors_state(store)}-*"):
        if (content := intact(path)) is not None:
            return path, content
        log.warning("%s: not what was written, and not used", path)
    return None, None


def intact(path: Path) -> np.ndarray | None:
    """Bytes of a file, memory-mapped; None if the checksum in its name does not match."""
    with suppress(OSError):  # a writer may just have replaced it
        content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        if zlib.crc32(content.data) == int(path.name.rpartition("-")[2], 16):
            return content.view(np.ndarray)  # ten times faster for single numbers
    return None


def _replace(store: Store, kind: str, blocks: Iterable[bytes]) -> None:
    """Replace the older files of a kind. There is no fsync: the checksum in the name reveals a partial write."""
    temporary, crc = store.folder / f".{kind}.tmp", 0
    try:
        with open(temporary, "wb") as file:
            for block in blocks:
                crc = zlib.crc32(block, crc)
                file.write(block)
        for old in store.folder.glob(f"{kind}-*"):
            old.unlink()
        os.replace(temporary, store.folder / f"{kind}-{vectors_state(store)}-{crc:08x}")
    finally:
        temporary.unlink(missing_ok=True)


def read(store: Store, after: int = 0) -> Iterator[np.ndarray]:
    """Records of the vectors in the database (see `record_type`) with an id above ``after``, in blocks."""
    kind = record_type(store.embed_dim)
    stored = np.dtype([*kind.descr[:-1], ("vector", f"V{kind['vector'].itemsize}")])
    sql = 'SELECT id, file, "start", "end", modality, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?'
    while True:
        rows = store.select(sql, (after, READ))
        try:
            records = np.array(rows, stored).view(kind)  # None is NaN in a float column
        except (TypeError, ValueError, OverflowError) as error:  # a value of another type
            raise Damaged(store.folder, error) from error
        yield records
        if len(rows) < READ:
            return
        after = rows[-1][0]


class _Lists:
    """Inverted lists of FAISS over 8-bit codes, by the ids of the vectors (Johnson et al., arXiv 1702.08734)."""

    def __init__(self, content: np.ndarray, matrix: Matrix) -> None:
        import faiss

        self._index = faiss.deserialize_index(content)
        bits = [np.bincount(matrix.id[rows], minlength=1) > 0 for rows in matrix.rows]
        self._selectors = [faiss.IDSelectorBitmap(np.packbits(own, bitorder="little")) for own in bits]  # type: ignore[call-arg, arg-type]

    @classmethod
    def open(cls, matrix: Matrix) -> "_Lists | None":
        """Lists of an index; None if they are missing, or FAISS is not installed or cannot read them."""
        _, content = _current(matrix.store, LISTS)  # first, as FAISS reads past the end of a damaged file
        with suppress(ImportError, RuntimeError):
            return None if content is None else cls(content, matrix)
        return None

    def candidates(self, query: np.ndarray, count: int, code: int) -> np.ndarray:
        """Ids of vectors of a modality that may be nearest; some may have been removed, and -1 is no vector."""
        import faiss

        parameters = faiss.SearchParametersIVF(sel=self._selectors[code], nprobe=PROBED)  # type: ignore[call-arg]
        return self._index.search(query[None], count, params=parameters)[1][0]


def _keep_lists(matrix: Matrix) -> None:
    """Write the lists of a matrix: the previous ones with newer vectors added, or new ones if too much has changed."""
    try:
        import faiss
    except ImportError:
        log.info("%s: faiss is not installed, so every vector is compared (extra index)", matrix.store.folder)
        return
    count, start = len(matrix), 0
    index: Any = None
    for path in matrix.store.folder.glob(f"{LISTS}-*"):
        content = intact(path)
        with suppress(RuntimeError):  # FAISS may be another version
            index = None if content is None else faiss.deserialize_index(content)
            start = int(np.searchsorted(matrix.id, int(path.name.split("-")[1]), "right"))
    lists = 4 * int(count**0.5)
    if index is None or index.nlist < lists / 2 or index.ntotal + count - start > STALE * count:
        start, index = 0, faiss.index_factory(matrix.store.embed_dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        chosen = np.random.default_rng(0).choice(count, min(TRAINED, count), replace=False)
        index.train(np.ascontiguousarray(matrix.vectors[np.sort(chosen)]))
    for first in range(start, count, READ):
        block = slice(first, first + READ)
        index.add_with_ids(np.ascontiguousarray(matrix.vectors[block]), matrix.id[block])
    _replace(matrix.store, LISTS, [faiss.serialize_index(index).tobytes()])
