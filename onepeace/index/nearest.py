"""The vectors of an index as one matrix, and the rows of it that are nearest to a query.

The matrix is a file that is made from the database and mapped: one record for each vector, behind a header with the
state of the index it is of, the number of records and their CRC-32. A writer appends to it, or makes it anew when
vectors were removed; a reader whose matrix is missing, damaged or of another state reads the vectors from the database.
Above `LARGE` vectors, and if FAISS is installed, inverted lists name candidates, which are then compared exactly.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from onepeace.errors import one_line
from onepeace.files.atomic import sync, write_atomic
from onepeace.index.plugin import plugin
from onepeace.index.store import VECTOR, Store
from onepeace.threads import one_blas_thread

log = logging.getLogger(__name__)

MATRIX, LISTS = "matrix.bin", "lists.faiss"
LOCAL = "local"
"""In place of the address of a service: vectors are compared here."""
HEADER = 4096
"""Bytes in front of the records: JSON and spaces."""
READ = 1 << 13
"""Vectors that are read from the database at once."""
LARGE = 250_000
"""Vectors from which on inverted lists are kept: exact search takes 5 ms for 100,000 vectors, 45 ms for a million."""
STALE = 0.1
"""Share of vectors that are newer than the lists, or removed since, from which on the lists are made again."""
PROBED, TRAINED = 48, 200_000
"""Lists that a query looks into, and vectors that their middles are learned from."""
BLOCK = 1 << 14
"""Vectors that a thread compares at once: its threads of BLAS would spin for each other's cores."""
ROUNDING = 1e-6
GATHERED = 0.2
"""Share of rows below which copying them together is faster than comparing all."""


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
        found = _mapped(store)
        self.is_mapped = isinstance(found, np.memmap)
        self.records = found.view(np.ndarray)  # reading single numbers is ten times as fast
        self._lists = _Lists.open(store) if len(self.records) >= LARGE else None

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
    def _chosen(self) -> "list[_Chosen]":
        """Rows of each modality."""
        return [_Chosen(self, np.flatnonzero(self.modality == code)) for code in range(len(self.store.kinds))]

    @staticmethod
    def _cosines(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
        cosines = np.empty(len(vectors), np.float32)

        def multiply(first: int) -> None:
            np.matmul(vectors[first : first + BLOCK], query, out=cosines[first : first + BLOCK])

        with one_blas_thread():
            firsts = range(0, len(vectors), BLOCK)
            if len(firsts) == 1:
                multiply(0)
            else:
                list(_threads().map(multiply, firsts))
        cosines[~np.isfinite(cosines)] = -np.inf
        return cosines

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
            compared = self._cosines(self.vectors, query)
        found = {}
        for code, modality in enumerate(self.store.kinds):
            chosen = self._chosen[code]
            if allowed is not None:
                chosen = _Chosen(self, chosen.rows[allowed[chosen.rows]])
            own = chosen.rows
            if self._lists is not None and len(own) >= GATHERED * len(self):
                own = self._lists.candidates(self, query, 4 * count, chosen)
            elif len(own) > count:
                near = self._cosines(self.vectors[own], query) if compared is None else compared[own]
                least = -np.partition(-near, count - 1)[count - 1]
                own = own[near >= least - ROUNDING]  # with all that are equal, in whatever order BLAS sums
            if len(own):
                found[modality] = _exact(self.vectors, query, own, count)
        return found

    def is_whole(self) -> bool:
        """Whether the mapped file is as long as it was: reading behind the end of one that another program has cut
        short would end the process."""
        if not self.is_mapped:
            return True
        with suppress(OSError):
            return os.stat(self.store.folder / MATRIX).st_size >= HEADER + self.records.nbytes
        return True  # the name is gone, the mapped file is not


def _exact(vectors: np.ndarray, query: np.ndarray, rows: np.ndarray, count: int) -> Found:
    """The best of some rows, by float64 sums that depend on the row alone: equal rows have equal cosines."""
    cosines = (vectors[rows] * query.astype(np.float64)).sum(axis=1)
    order = np.lexsort((rows, -cosines))[:count]
    return Found(rows[order], np.clip(cosines[order], -1, 1).astype(np.float32))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "onepeace-nearest")


class VectorService(Protocol):
    """A service that is asked which vectors are near, in place of the matrix; a module of onepeace.plugins opens it."""

    def nearest(self, query: np.ndarray, count: int, allowed: np.ndarray | None = None) -> dict[str, Found]:
        """See `Matrix.nearest`; a service that does not answer is replaced by the matrix, which is said once."""

    def send(self) -> None:
        """Bring the service up to date with the matrix."""

    def close(self) -> None:
        """End the connection."""


def service_of(store: Store, matrix: Matrix, address: str | None = None) -> VectorService:
    """Service of an index, by ``onepeace.plugins.NAME.open_store``.

    Args:
        address: "NAME://..."; None = that of the index.

    Raises:
        UserError: no such plug-in, or a package that it needs is not installed.
    """
    address = address or store.meta["store"]
    return plugin(address.partition("://")[0], "open_store")(address, store, matrix)


def keep(store: Store) -> None:
    """Bring the matrix, and where there are many vectors the lists, up to date with a store open for writing.

    A disk that is full costs the files, not the index: they only save time.
    """
    try:
        count = _keep_matrix(store)
        if count >= LARGE:
            _Lists.keep(store)
    except OSError as error:
        log.warning("%s: cannot be written (%s); searching takes longer", store.folder / MATRIX, one_line(error))


def fault_of(store: Store) -> str | None:
    """What is wrong with the matrix or the lists; None if they are what was written, older or not there."""
    path = store.folder / MATRIX
    known = _header(path, store)
    if path.exists() and (known is None or not _is_as_written(path, known, record_type(store.embed_dim))):
        return f"{MATRIX} is not what was written"
    with suppress(OSError):
        lists = json.loads(store.meta.get("lists", "null"))
        if lists is not None and zlib.crc32((store.folder / LISTS).read_bytes()) != lists["crc"]:
            return f"{LISTS} is not what was written"
    return None


def _keep_matrix(store: Store) -> int:
    path, kind = store.folder / MATRIX, record_type(store.embed_dim)
    known = _header(path, store)
    if known is not None and known["generation"] == store.generation:
        return known["count"]
    if known is not None and known["removed"] == store.meta["removed"] and _is_as_written(path, known, kind):
        with open(path, "r+b") as file:
            file.seek(HEADER + known["count"] * kind.itemsize)
            known = _write(file, store, known, kind)
            sync(path)
            file.seek(0)  # only now: a crash in between leaves a header that does not fit
            file.write(_as_header(known))
        sync(path)
    else:
        with write_atomic(path) as temporary, open(temporary, "wb") as file:
            file.write(b" " * HEADER)
            known = _write(file, store, {"count": 0, "last": 0, "crc": 0}, kind)
            file.seek(0)
            file.write(_as_header(known))
    return known["count"]


def _write(file: Any, store: Store, known: dict[str, Any], kind: np.dtype) -> dict[str, Any]:
    """Append the records behind the last one that is known; gives the new header."""
    count, last, crc = known["count"], known["last"], known["crc"]
    for records in _read(store, kind, last):
        content = records.tobytes()
        file.write(content)
        count, last, crc = count + len(records), int(records["id"][-1]), zlib.crc32(content, crc)
    file.truncate()
    file.flush()
    return {"generation": store.generation, "removed": store.meta["removed"], "count": count, "last": last, "crc": crc}


def _read(store: Store, kind: np.dtype, after: int = 0) -> Iterator[np.ndarray]:
    """Records of the vectors in the database from an id on, in blocks."""
    while True:
        sql = 'SELECT id, file, "start", "end", modality, vector FROM vectors WHERE id > ? ORDER BY id LIMIT ?'
        rows = store.select(sql, (after, READ))
        if not rows:
            return
        records = np.empty(len(rows), kind)
        *numbers, blobs = zip(*rows, strict=True)
        for name, values in zip(("id", "file", "start", "end", "modality"), numbers, strict=True):
            records[name] = np.array(values, kind[name])  # None is NaN in a float array
        size = kind["vector"].itemsize
        whole = b"".join(blob if len(blob) == size else bytes(size) for blob in blobs)
        records["vector"] = np.frombuffer(whole, VECTOR).reshape(len(rows), -1)
        yield records
        after = rows[-1][0]


def _mapped(store: Store) -> np.ndarray:
    """Records of the matrix, mapped; read from the database if the file is not of its state."""
    path, kind = store.folder / MATRIX, record_type(store.embed_dim)
    known = _header(path, store)
    if known is not None and known["generation"] == store.generation and known["count"]:
        records = np.memmap(path, kind, "r", offset=HEADER, shape=(known["count"],))
        if zlib.crc32(records.view(np.uint8).data) == known["crc"]:
            return records
        log.warning("%s: not what was written; the vectors are read from the database", path)
    blocks = list(_read(store, kind))
    return np.concatenate(blocks) if blocks else np.empty(0, kind)


def _header(path: Path, store: Store) -> dict[str, Any] | None:
    """What the file says of itself, if it is there and as long as it says."""
    try:
        with open(path, "rb") as file:
            known = json.loads(file.read(HEADER))
            size = os.fstat(file.fileno()).st_size
        crc = known.pop("header")
        is_own = crc == zlib.crc32(json.dumps(known).encode())
        whole = HEADER + known["count"] * record_type(store.embed_dim).itemsize
        return known if is_own and size >= whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _as_header(known: dict[str, Any]) -> bytes:
    return json.dumps({**known, "header": zlib.crc32(json.dumps(known).encode())}).encode().ljust(HEADER)


def _is_as_written(path: Path, known: dict[str, Any], kind: np.dtype) -> bool:
    crc, left = 0, known["count"] * kind.itemsize
    with open(path, "rb") as file:
        file.seek(HEADER)
        while left and (block := file.read(min(left, 1 << 24))):
            crc, left = zlib.crc32(block, crc), left - len(block)
    return not left and crc == known["crc"]


class _Lists:
    """Inverted lists of FAISS over 8-bit codes, by the ids of the vectors (Johnson et al., arXiv 1702.08734).

    Args:
        index: of FAISS.
        last: id of the newest vector in it.
    """

    def __init__(self, index: Any, last: int) -> None:
        self._index, self._last = index, last

    @classmethod
    def open(cls, store: Store) -> "_Lists | None":
        """Lists of an index, if they are there and what was written, and FAISS is installed."""
        path = store.folder / LISTS
        try:
            import faiss

            known = json.loads(store.meta["lists"])
            content = path.read_bytes()  # a native loader reads past a damaged file, so the checksum comes first
            if zlib.crc32(content) != known["crc"]:
                raise ValueError("not what was written")
            index = faiss.deserialize_index(np.frombuffer(content, np.uint8))
        except (ImportError, KeyError):
            return None
        except (OSError, ValueError, RuntimeError) as error:
            log.warning("%s: not used (%s); every vector is compared", path, one_line(error))
            return None
        return cls(index, known["last"])

    @classmethod
    def keep(cls, store: Store) -> None:
        """Make the lists of a store open for writing, if there are none or too much has changed."""
        try:
            import faiss
        except ImportError:
            log.info("%s: faiss is not installed, so every vector is compared (extra index)", store.folder)
            return
        records = _mapped(store)
        known = json.loads(store.meta.get("lists", "null"))
        if known is not None and (store.folder / LISTS).is_file():
            removed = int(store.meta["removed"]) - known["removed"]
            new = len(records) - int(np.searchsorted(records["id"], known["last"], "right"))
            if removed + new < STALE * len(records):
                return
        count, embed_dim = len(records), store.embed_dim
        index = faiss.index_factory(embed_dim, f"IVF{4 * int(count**0.5)},SQ8", faiss.METRIC_INNER_PRODUCT)
        chosen = np.random.default_rng(0).choice(count, min(TRAINED, count), replace=False)
        index.train(np.ascontiguousarray(records["vector"][np.sort(chosen)]))
        for start in range(0, count, 1 << 16):
            block = records[start : start + (1 << 16)]
            index.add_with_ids(np.ascontiguousarray(block["vector"]), np.ascontiguousarray(block["id"]))
        content = faiss.serialize_index(index).tobytes()
        with write_atomic(store.folder / LISTS) as temporary:
            temporary.write_bytes(content)
        about = {"crc": zlib.crc32(content), "last": int(records["id"][-1]), "removed": int(store.meta["removed"])}
        with store.transaction():
            store.set_meta(lists=json.dumps(about))
        _keep_matrix(store)  # its header names the new state

    def candidates(self, matrix: Matrix, query: np.ndarray, count: int, chosen: "_Chosen") -> np.ndarray:
        """Chosen rows that may be nearest, and all chosen rows that are newer than the lists."""
        import faiss

        parameters = faiss.SearchParametersIVF(sel=chosen.selector, nprobe=PROBED)  # type: ignore[call-arg]
        found = self._index.search(query[None], count, params=parameters)[1][0]
        newer = chosen.rows[np.searchsorted(chosen.rows, np.searchsorted(matrix.id, self._last, "right")) :]
        return np.concatenate([np.searchsorted(matrix.id, found[found >= 0]), newer])


class _Chosen:
    """Some rows of a matrix, rising, and what FAISS reads for them."""

    def __init__(self, matrix: Matrix, rows: np.ndarray) -> None:
        self.rows = rows
        self._id = matrix.id

    @cached_property
    def selector(self) -> Any:
        """Ids of the rows as bits; None for all rows."""
        import faiss

        if len(self.rows) == len(self._id):
            return None
        bits = np.zeros(int(self._id[-1]) + 1, np.bool_)
        bits[self._id[self.rows]] = True
        return faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))  # type: ignore[call-arg, arg-type]
