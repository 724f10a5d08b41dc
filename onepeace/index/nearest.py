"""The vectors of an index as one matrix, and the rows of it that are nearest to a query.

The matrix is a memory-mapped file made from the database. Above `LARGE` vectors, and if FAISS is installed, inverted
lists give candidates, which are then compared exactly. A file's name, KIND-LAST-REMOVED-CRC, has the last vector id in
it, the number of vectors removed so far, and the CRC-32 of its content. A file that does not match is ignored, and
written again by the next writer; a reader without a matrix reads the vectors from the database.
"""

import logging
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import one_line
from onepeace.index.plugin import plugin
from onepeace.index.store import VECTOR, Store
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

MATRIX, LISTS = "matrix", "lists"
LOCAL = "local"
"""Address that means no service."""
READ = 1 << 13
"""Vectors read from the database at once."""
LARGE = 250_000
"""Vectors from which on inverted lists are kept: exact search takes 5 ms for 100,000 vectors, 45 ms for a million."""
STALE = 0.1
"""Share of vectors added or removed since the lists were made, from which on they are made again."""
PROBED, TRAINED = 48, 200_000
"""Lists that a query probes (nprobe), and vectors that the centroids are trained on."""
BLOCK = 1 << 14
"""Vectors per task of the thread pool; BLAS itself runs single-threaded, as its threads would spin."""
ROUNDING = 1e-6
GATHERED = 0.2
"""Share of rows below which gathering them is faster than comparing all."""


def record_type(embed_dim: int) -> np.dtype:
    """Record of a vector in the matrix; its size is a multiple of 8 bytes, so that BLAS reads the vectors in place."""
    numbers = [("id", "<i8"), ("file", "<i8"), ("start", "<f8"), ("end", "<f8"), ("modality", "<i8")]
    return np.dtype([*numbers, ("vector", VECTOR, (embed_dim,))])


@dataclass(frozen=True)
class Found:
    """Rows near a query, best first, equal ones by row."""

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
        self._path = next(store.folder.glob(f"{MATRIX}-{vectors_state(store)}-*"), None)
        mapped = _mapped(self._path, record_type(store.embed_dim))
        self.is_mapped = mapped is not None
        self.records = mapped if mapped is not None else np.concatenate([*read(store)])
        self._lists = _Lists.open(self) if len(self.records) >= LARGE else None

    def __len__(self) -> int:
        return len(self.records)

    @property
    def vectors(self) -> np.ndarray:
        """(n, E) float32, unit rows."""
        return self.records["vector"]

    @cached_property
    def id(self) -> np.ndarray:
        """(n,) int64: the id of each row, rising."""
        return np.ascontiguousarray(self.records["id"])

    @cached_property
    def file(self) -> np.ndarray:
        """(n,) int64: the id of the file of each row."""
        return np.ascontiguousarray(self.records["file"])

    @cached_property
    def modality(self) -> np.ndarray:
        """(n,) int8: place in `Store.kinds`."""
        return self.records["modality"].astype(np.int8)

    @cached_property
    def _rows(self) -> list[np.ndarray]:
        return [np.flatnonzero(self.modality == code) for code in range(len(self.store.kinds))]

    @cached_property
    def _selectors(self) -> list[Any]:
        return [_selector(self.id, rows) for rows in self._rows]

    def times(self, row: int) -> tuple[float | None, float | None]:
        """Start and end in seconds of the part that a row stands for; None for the whole file."""
        start, end = (float(self.records[name][row]) for name in ("start", "end"))
        return (None if np.isnan(start) else start), (None if np.isnan(end) else end)

    def nearest(self, query: np.ndarray, count: int, allowed: np.ndarray | None = None) -> dict[str, Found]:
        """The rows of each modality that are nearest to a unit vector.

        Args:
            query: (E,) float32.
            count: rows of each modality.
            allowed: (n,) bool; None = all.
        """
        compared: np.ndarray | None = None
        if self._lists is None and (allowed is None or allowed.mean() >= GATHERED):
            compared = _cosines(self.vectors, query)
        found = {}
        for code, modality in enumerate(self.store.kinds):
            own = self._rows[code] if allowed is None else self._rows[code][allowed[self._rows[code]]]
            if self._lists is not None and len(own) >= GATHERED * len(self):
                selector = self._selectors[code] if allowed is None else _selector(self.id, own)
                own = self._lists.candidates(query, 4 * count, own, selector)
            elif len(own) > count:
                near = _cosines(self.vectors[own], query) if compared is None else compared
                near = near[own] if len(own) < len(near) else near
                least = np.partition(near, -count)[-count]
                own = own[np.flatnonzero(near >= least - ROUNDING)]  # with all equal ones, in whatever order BLAS sums
            if len(own):
                found[modality] = _exact(self.vectors, query, own, count)
        return found

    def is_whole(self) -> bool:
        """Whether the mapped file is as long as it was; reading past the end of a truncated one is a bus error."""
        with suppress(OSError):  # the name is gone, the mapped file is not
            return self._path is None or not self.is_mapped or os.stat(self._path).st_size >= self.records.nbytes
        return True


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


def _exact(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, count: int) -> Found:
    """The best of some rows, by float64 sums that depend on the row alone: equal rows have equal cosines."""
    cosines = (vectors[rows] * query.astype(np.float64)).sum(axis=1)
    order = np.lexsort((rows, -cosines))[:count]
    return Found(rows[order], np.clip(cosines[order], -1, 1).astype(np.float32))


def service_of(store: Store, matrix: Matrix, address: str | None = None) -> Any:
    """Service that is asked which vectors are near, by ``onepeace.plugins.NAME.open_store``.

    It has `nearest`, as `Matrix` has; `send`, which brings it up to date with the matrix; and `close`.

    Args:
        address: "NAME://..."; None = that of the index.

    Raises:
        UserError: no such plug-in, or a package that it needs is not installed.
    """
    address = address or store.meta["store"]
    return plugin(address, "open_store")(address, store, matrix)


def keep(store: Store) -> None:
    """Bring the matrix, and where there are many vectors the lists, up to date with the database.

    A disk that is full costs the files, not the index: they only save time.
    """
    try:
        if not any(store.folder.glob(f"{MATRIX}-{vectors_state(store)}-*")):
            _replace(store, MATRIX, vectors_state(store), (records.tobytes() for records in read(store)))
        if store.select("SELECT count(*) FROM vectors")[0][0] >= LARGE:
            _Lists.keep(Matrix(store))
    except OSError as error:
        log.warning("%s: %s cannot be written (%s); searching takes longer", store.folder, MATRIX, one_line(error))


def fault_of(folder: Path) -> str | None:
    """Fault of the matrix or the lists; None if there is none, or they are not there."""
    for path in derived(folder):
        if _checksum(path) != _parts(path)[-1]:
            return f"{path.name} is not what was written"
    return None


def derived(folder: Path) -> list[Path]:
    """Files of an index that are made from its database."""
    return [*folder.glob(f"{MATRIX}-*"), *folder.glob(f"{LISTS}-*")]


def _parts(path: Path) -> list[int]:
    """Numbers of a file's name, the checksum last."""
    *numbers, crc = path.name.split("-")[1:]
    return [*map(int, numbers), int(crc, 16)]


def _checksum(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc


def vectors_state(store: Store) -> str:
    """State of an index's vectors, LAST-REMOVED, as in the names of its files."""
    ((last,),) = store.select("SELECT max(id) FROM vectors")
    return f"{last or 0}-{store.meta['removed']}"


def _replace(store: Store, kind: str, state: str, blocks: Iterator[bytes]) -> None:
    """Replace the older files of a kind. There is no fsync: the checksum in the name tells a half-written one."""
    temporary, crc = store.folder / f".{kind}.tmp", 0
    try:
        with open(temporary, "wb") as file:
            for block in blocks:
                crc = zlib.crc32(block, crc)
                file.write(block)
        for old in store.folder.glob(f"{kind}-*"):
            old.unlink()
        os.replace(temporary, store.folder / f"{kind}-{state}-{crc:08x}")
    finally:
        temporary.unlink(missing_ok=True)


def read(store: Store, after: int = 0) -> Iterator[np.ndarray]:
    """Records of the vectors in the database (see `record_type`) with an id above ``after``, in blocks."""
    kind = record_type(store.embed_dim)
    sql = 'SELECT id, file, "start", "end", modality, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?'
    while True:
        rows = store.select(sql, (after, READ))
        records = np.empty(len(rows), kind)
        if rows:
            *numbers, blobs = zip(*rows, strict=True)
            for name, values in zip(("id", "file", "start", "end", "modality"), numbers, strict=True):
                records[name] = np.array(values, kind[name])  # None is NaN in a float array
            size = kind["vector"].itemsize
            whole = b"".join(blob if len(blob) == size else bytes(size) for blob in blobs)
            records["vector"] = np.frombuffer(whole, VECTOR).reshape(len(rows), -1)
        yield records
        if len(rows) < READ:
            return
        after = rows[-1][0]


def _mapped(path: Path | None, kind: np.dtype) -> np.ndarray | None:
    """Records of a matrix file, mapped; None if there is none, or another content than was written."""
    if path is None:
        return None
    try:
        records = np.memmap(path, kind, "r")
    except (OSError, ValueError):  # a writer has just replaced it, or it is empty or cut short
        return None
    if zlib.crc32(records.view(np.uint8).data) != _parts(path)[-1]:
        log.warning("%s: not what was written; the vectors are read from the database", path)
        return None
    return records.view(np.ndarray)  # reading single numbers is ten times as fast


class _Lists:
    """Inverted lists of FAISS over 8-bit codes, by the ids of the vectors (Johnson et al., arXiv 1702.08734).

    Args:
        index: of FAISS.
        last: id of the newest vector in it.
    """

    def __init__(self, index: Any, matrix: Matrix, last: int) -> None:
        self._index, self._id, self._last = index, matrix.id, last

    @classmethod
    def open(cls, matrix: Matrix) -> "_Lists | None":
        """Lists of an index, if they are there and what was written, and FAISS is installed."""
        path = next(matrix.store.folder.glob(f"{LISTS}-*"), None)
        if path is None:
            return None
        try:
            import faiss

            last, _, crc = _parts(path)
            content = path.read_bytes()  # a native loader reads past a damaged file, so the checksum comes first
            if zlib.crc32(content) != crc:
                raise ValueError("not what was written")
            return cls(faiss.deserialize_index(np.frombuffer(content, np.uint8)), matrix, last)
        except ImportError:
            return None
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("%s: not used (%s); every vector is compared", path, one_line(error))
            return None

    @classmethod
    def keep(cls, matrix: Matrix) -> None:
        """Make the lists of a matrix, if there are none or too much has changed."""
        store, count = matrix.store, len(matrix)
        try:
            import faiss
        except ImportError:
            log.info("%s: faiss is not installed, so every vector is compared (extra index)", store.folder)
            return
        for path in store.folder.glob(f"{LISTS}-*"):
            last, before, _ = _parts(path)
            new = count - int(np.searchsorted(matrix.id, last, "right"))
            if int(store.meta["removed"]) - before + new < STALE * count:
                return
        index = faiss.index_factory(store.embed_dim, f"IVF{4 * int(count**0.5)},SQ8", faiss.METRIC_INNER_PRODUCT)
        chosen = np.random.default_rng(0).choice(count, min(TRAINED, count), replace=False)
        index.train(np.ascontiguousarray(matrix.vectors[np.sort(chosen)]))
        for start in range(0, count, 1 << 16):
            block = slice(start, start + (1 << 16))
            index.add_with_ids(np.ascontiguousarray(matrix.vectors[block]), matrix.id[block])
        _replace(store, LISTS, vectors_state(store), iter([faiss.serialize_index(index).tobytes()]))

    def candidates(self, query: np.ndarray, count: int, rows: np.ndarray, selector: Any) -> np.ndarray:
        """Rows, rising, among some that may be nearest, with all of these that are newer than the lists."""
        import faiss

        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=PROBED)  # type: ignore[call-arg]
        ids = self._index.search(query[None], count, params=parameters)[1][0]
        found = np.searchsorted(self._id, ids)
        found = found[np.take(self._id, found, mode="clip") == ids]  # one may have been removed since; -1 is none
        newer = rows[np.searchsorted(rows, np.searchsorted(self._id, self._last, "right")) :]
        return np.concatenate([found, newer])


def _selector(ids: np.ndarray, rows: np.ndarray) -> Any:
    """FAISS selector of rows, a bitmap of their ids; None for all rows."""
    import faiss

    if len(rows) == len(ids):
        return None
    bits = np.zeros(int(ids[-1]) + 1, np.bool_)
    bits[ids[rows]] = True
    return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))  # type: ignore[call-arg, arg-type]
