"""A shard: a tar that is whole, the index of its samples, and reading of their members.

A shard is whole if it ends as a tar ends, with two blocks of zeros, and has a sample. Anything else, such as half a
download or the page of a proxy, is an `UnreadableShard`, and nothing of it is kept. A plain tar on the disk is read in
place. Others (compressed, or at addresses that fsspec opens) are copied to a folder of the cache, which also holds the
index of every shard, and which all processes of a machine share. A copy is used only if it has the size, and a member
of it the checksum, that it had when it was copied; otherwise the copy is made anew.
"""

import errno
import gzip
import hashlib
import io
import itertools
import os
import stat
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line, reason_of
from onepeace.files.atomic import cache_folder, remove_unfinished_in, write_atomic
from onepeace.files.derived import read_derived, write_derived
from onepeace.files.source import describe, scheme

CACHE_BYTES = 20e9
"""Default limit of the folder of the cache."""
KEPT_SHARE = 0.9
"""Share of the limit down to which files are removed."""
RULES = "whole 4"
"""Part of the names of copies and indexes; another text makes all of them anew."""
READ_PAUSES: Sequence[float] = (0.1, 1.0)
"""Seconds before each further attempt to read a file on the disk."""
FETCH_PAUSES: Sequence[float] = (1.0, 5.0, 15.0)
"""Seconds before each further attempt to fetch a shard from its address."""
STALLED = 60.0
"""Seconds without data after which an attempt fails."""
REQUEST_SECONDS = 600.0
"""Seconds after which a request fails, and is not repeated, even if data still trickle in."""
OPEN_FILES = 128
"""Maximum number of shards that a process keeps open."""
FETCHING = 4
"""Number of shards that a process fetches at the same time."""
CHUNK_BYTES = 1 << 20
GZIP = b"\x1f\x8b"
"""First bytes of a compressed shard."""
READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags for opening a file; without O_NONBLOCK, opening a named pipe would wait for a writer."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a disk, or a user's part of it, without room."""
BUSY = (408, 429)
"""Statuses of a server below 500 that may pass."""


class UnreadableShard(UserError):
    """A shard is not whole, or cannot be opened or read: all of its samples are lost."""


class CacheFailure(UserError):
    """The cache cannot be written. Unlike an unreadable shard, it ends a run."""


class _Failure(Exception):
    """An attempt to open a shard failed.

    Args:
        reason: why, for the message.
        is_final: whether another attempt would fail too.
    """

    def __init__(self, reason: str, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


# A shard and its members


class FileState(NamedTuple):
    """Numbers that tell a file from one that has taken its place."""

    size: int
    modified_ns: int = 0
    inode: int = 0
    """This and the time are 0 for a copy, which may be made again."""


@dataclass(unsafe_hash=True)
class ShardFile:
    """The uncompressed tar of a shard."""

    address: str
    """Path or address of the shard."""
    path: str
    """Path of the tar: the shard's, or that of its copy in the cache."""
    state: FileState
    cache_bytes: float
    """Limit of the cache, for a copy that was removed and is made again."""
    failure: UnreadableShard | None = field(default=None, compare=False)
    """Why it could not be read; it is then not tried again."""

    @property
    def is_copy(self) -> bool:
        """Whether it is a copy in the cache."""
        return self.path != self.address

    def read(self, extent: "Extent") -> bytes:
        """Bytes of a member, with several attempts.

        Raises:
            UnreadableShard: the file is gone, has changed, or cannot be read.
        """
        if self.failure is not None:
            raise self.failure
        try:
            return _with_pauses(lambda: self._read_once(extent), READ_PAUSES)
        except UnreadableShard as error:
            self.failure = error
        except OSError as error:
            self.failure = UnreadableShard(f"cannot be read ({reason_of(error)})", where=describe(self.address))
        raise self.failure

    def _read_once(self, extent: "Extent") -> bytes:
        if self.is_copy and not self._is_whole():  # but removed to make room, cut, or damaged
            open_shard(self.address, self.cache_bytes)
            forget_open_files()
        opened = _opened(self)
        status = os.fstat(opened.descriptor)
        state = FileState(status.st_size) if self.is_copy else _state_of(status)
        if state != self.state:
            raise UnreadableShard(
                f"has changed since it was indexed ({self.state.size} bytes, now {state.size}); start again with "
                "shards that do not change",
                where=describe(self.address),
            )
        data = opened.read(extent.offset, extent.size)
        if len(data) < extent.size:
            raise OSError(f"{len(data)} bytes in place of {extent.size}")
        if extent.checksum is not None and zlib.crc32(data) != extent.checksum:
            with suppress(OSError):  # on Windows, one that is open cannot be removed
                os.unlink(self.path)
            raise OSError(f"its copy in the cache is damaged: {self.path}")
        return data

    def _is_whole(self) -> bool:
        with suppress(FileNotFoundError):
            return os.fstat(_opened(self).descriptor).st_size == self.state.size
        return False


class Extent(NamedTuple):
    """A member of a shard."""

    file: ShardFile
    offset: int
    size: int
    checksum: int | None = None
    """CRC-32 of the bytes, in a copy."""

    def __bool__(self) -> bool:
        return self.size > 0

    def read(self) -> bytes:
        """The bytes; see `ShardFile.read`."""
        return self.file.read(self)


def content_of(value: Any) -> Any:
    """The value with each `Extent` replaced by its bytes, also in lists and dictionaries."""
    if isinstance(value, Extent):
        return value.read()
    if isinstance(value, dict):
        return {name: content_of(part) for name, part in value.items()}
    if isinstance(value, list):
        return [content_of(part) for part in value]
    return value


@dataclass(frozen=True, eq=False)
class Shard:
    """The N samples and M members of a shard; samples are read by their number, 0 to N - 1."""

    file: ShardFile
    keys: list[str]
    """(N)"""
    layouts: list[list[str]]
    """Distinct lists of the file endings of a sample, e.g. ["jpg", "json"]."""
    layout_of: NDArray[np.uint32]
    """(N,): number of each sample's layout."""
    member_starts: NDArray[np.int64]
    """(N + 1,): number of each sample's first member; the last entry is M."""
    offsets: NDArray[np.int64]
    """(M,): first byte of each member's content."""
    sizes: NDArray[np.int64]
    """(M,): number of bytes of each member."""
    checksums: NDArray[np.uint32]
    """(M,): CRC-32 of each member of a copy; (0,) for a tar that is read in place."""

    def __len__(self) -> int:
        return len(self.layout_of)

    @property
    def name(self) -> str:
        """Its path, or its address without what may be secret."""
        return describe(self.file.address)

    def members(self, row: int) -> dict[str, Extent]:
        """The members of a sample by file ending."""
        start, end = self.member_starts[row : row + 2].tolist()
        endings = self.layouts[self.layout_of[row]]
        offsets = self.offsets[start:end].tolist()
        sizes = self.sizes[start:end].tolist()
        checksums = self.checksums[start:end].tolist() or itertools.repeat(None)
        extents: dict[str, Extent] = {}
        for ending, offset, size, checksum in zip(endings, offsets, sizes, checksums, strict=False):
            extents[ending] = Extent(self.file, offset, size, checksum)
        return extents


# Opening


def open_shard(address: str, cache_bytes: float = CACHE_BYTES) -> Shard:
    """Open a shard; the first time, it is indexed and, if it is compressed or elsewhere, copied to the cache.

    Args:
        address: an absolute path or an address.
        cache_bytes: maximum size of the cache's folder ``shards``; the least recently used files are removed, but
            none of this shard.

    Raises:
        UnreadableShard: the shard is not whole or cannot be read, after several attempts.
        CacheFailure: the cache cannot be written.
    """
    folder = cache_folder() / "shards"
    pauses = FETCH_PAUSES if scheme(address) else READ_PAUSES
    try:
        return _with_pauses(lambda: _open_once(address, cache_bytes, folder), pauses)
    except (OSError, _Failure) as error:
        if not _is_of_cache(error, folder):
            raise UnreadableShard(reason_of(error), where=describe(address)) from error
        raise CacheFailure(
            f"copies and indexes of shards cannot be written there ({reason_of(error)}); make room, "
            "lower data.cache_gigabytes, or set ONEPEACE_CACHE to another folder",
            where=folder,
        ) from error


def fetch_ahead(addresses: Sequence[str], cache_bytes: float) -> None:
    """Open the shards at addresses in threads, so that they are in the cache when they are drawn."""

    def open_all(part: Sequence[str]) -> None:
        for address in part:
            with suppress(Exception):  # reported when the shard is drawn
                open_shard(address, cache_bytes)

    remote = [address for address in addresses if scheme(address)]
    for number in range(min(FETCHING, len(remote))):
        Thread(target=open_all, args=(remote[number::FETCHING],), name="onepeace-fetch", daemon=True).start()


def _open_once(address: str, cache_bytes: float, folder: Path) -> Shard:
    from filelock import FileLock

    identity = f"{RULES} {address}"
    state = FileState(0)
    is_copied = bool(scheme(address))
    if not is_copied:
        opened = OpenFile(address)
        state = _state_of(opened.status)
        identity = f"{identity} {state}"
        is_copied = opened.read(0, len(GZIP)) == GZIP
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    index = folder / f"{name}.index"
    tar = Path(address)
    files = [index]
    if is_copied:
        tar = folder / f"{name}.tar"
        files.append(tar)
    folder.mkdir(parents=True, exist_ok=True)
    fields = _read_index(files)
    if fields is None:
        with FileLock(folder / f"{name[:3]}.lock"):
            fields = _read_index(files) or _make_index(address, tar, index)
            if is_copied or name.startswith("00"):  # listing the folder for each of many indexes would take long
                _make_room(folder, cache_bytes, keep=files)
    num_bytes = fields.pop("num_bytes")
    if is_copied:
        state = FileState(num_bytes)
    return Shard(ShardFile(address, str(tar), state, cache_bytes), **fields)


def _make_index(address: str, tar: Path, index: Path) -> dict[str, Any]:
    """Copy a shard, unless it is read in place, and write its index."""
    if tar.parent == index.parent:
        with write_atomic(tar) as temporary:
            _copy(address, temporary)
            fields = index_tar(temporary)
            fields["checksums"] = _checksums(temporary, fields["offsets"], fields["sizes"])
    else:
        fields = index_tar(tar)
    arrays = dict(fields)
    about = {name: arrays.pop(name) for name in ("keys", "layouts", "num_bytes")}
    write_derived(index, index.stem, arrays, about)
    return fields


def _with_pauses(attempt: Callable[[], Any], pauses: Sequence[float]) -> Any:
    """Result of a function that is tried again, after each pause, when it fails."""
    for pause in pauses:
        try:
            return attempt()
        except (OSError, _Failure) as error:
            if getattr(error, "is_final", False):
                raise
        time.sleep(pause)
        forget_open_files()
    return attempt()


# Files that are open


class OpenFile:
    """A regular file, closed when nothing refers to it; OSError for anything else, such as a named pipe."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, READING)
        self.status = os.fstat(self.descriptor)
        if not stat.S_ISREG(self.status.st_mode):
            raise OSError("it is not a regular file")

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        if hasattr(os, "pread"):  # processes that share the descriptor do not share a position
            return os.pread(self.descriptor, size, offset)
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        return os.read(self.descriptor, size)


@lru_cache(maxsize=OPEN_FILES if hasattr(os, "pread") else 0)
def _opened(file: ShardFile) -> OpenFile:
    """The file, which stays open, but on Windows, where an open one can be neither removed nor replaced."""
    return OpenFile(file.path)


def _size_of(path: str | Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return os.path.getsize(path) if os.path.exists(path) else 0


def forget_open_files() -> None:
    """Close the files that this process keeps open for reading."""
    _opened.cache_clear()


def _state_of(status: os.stat_result) -> FileState:
    """State of a file that is not a copy."""
    return FileState(status.st_size, status.st_mtime_ns, status.st_ino)


# The index


def index_tar(path: Path) -> dict[str, Any]:
    """The fields of a `Shard` by name, and "num_bytes", of an uncompressed tar, of which only the headers are read.

    Raises:
        _Failure: it is not whole.
    """
    from webdataset.tariterators import group_by_keys

    layout_numbers: dict[tuple[str, ...], int] = {}
    layout_of: list[int] = []
    member_counts: list[int] = []
    places: list[tuple[int, int]] = []
    keys: list[str] = []
    with open(path, "rb", buffering=0) as file:
        try:
            for sample in group_by_keys(_members(file)):
                endings = tuple(ending for ending in sample if not ending.startswith("__"))
                layout_of.append(layout_numbers.setdefault(endings, len(layout_numbers)))
                member_counts.append(len(endings))
                places += [sample[ending] for ending in endings]
                keys.append(sample["__key__"])
        except ValueError as error:  # of webdataset: a member comes twice
            raise _Failure(str(error.args[0])) from error
    if not keys:
        raise _Failure("the tar has no sample")
    offsets, sizes = np.array(places, np.int64).T.copy()
    return {
        "keys": keys,
        "layouts": [list(endings) for endings in layout_numbers],
        "num_bytes": _size_of(path),
        "layout_of": np.array(layout_of, np.uint32),
        "member_starts": np.cumsum([0, *member_counts], dtype=np.int64),
        "offsets": offsets,
        "sizes": sizes,
        "checksums": np.zeros(0, np.uint32),
    }


def _checksums(path: Path, offsets: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(M,): CRC-32 of each member of a tar."""
    tar = OpenFile(str(path))
    members = zip(offsets.tolist(), sizes.tolist(), strict=True)
    return np.array([zlib.crc32(tar.read(offset, size)) for offset, size in members], np.uint32)


def _members(file: io.FileIO) -> Iterator[dict[str, Any]]:
    """Each regular file of a tar in webdataset's form, with (offset, size) in place of its data; checks the end."""
    size = os.fstat(file.fileno()).st_size
    last = "the beginning"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # this list would keep growing
                last = member.name
                if member.issparse():
                    raise _Failure(f"{last} is stored as a sparse file; make the tar without that (tar without -S)")
                if member.isreg():
                    yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": ""}
            end = tar.offset
    except tarfile.TarError as error:
        if last == "the beginning":
            raise _Failure(f"is not a tar: it has {size} bytes and begins with {_head(file)!r}") from error
        raise _Failure(f"is cut short: it ends within {last}, after {size} bytes") from error
    except (MemoryError, OverflowError, ValueError) as error:
        raise _Failure(f"is damaged after {last}: a header of no possible file ({one_line(error)})") from error
    file.seek(end)
    rest = file.read(CHUNK_BYTES)
    if any(rest):
        raise _Failure(f"is damaged after {last}: what begins at byte {end} of {size} is no member")
    if len(rest) < 2 * tarfile.BLOCKSIZE:
        raise _Failure(f"is cut short: after {last} and {size} bytes, the end of a tar is missing")


def _head(file: io.FileIO) -> bytes:
    """The first bytes of a file."""
    file.seek(0)
    return file.read(20)


def _read_index(files: Sequence[Path]) -> dict[str, Any] | None:
    """The fields of an index, mapped into memory; None if it is damaged, or a file is missing or has another size.

    Args:
        files: the index, and the copy of the shard if it has one; they are marked as used now.
    """
    try:
        for path in files:
            os.utime(path)
        index = read_derived(files[0], files[0].stem)
    except FileNotFoundError:
        return None
    if index is None or any(_size_of(copy) != index.about["num_bytes"] for copy in files[1:]):
        return None
    return {**index.about, **index.arrays}


# Copies


def _copy(address: str, target: Path) -> None:
    """Write the uncompressed tar of a shard."""
    started = time.monotonic()
    try:
        with _open_address(address) as raw, open(target, "wb") as file:
            source: Any = io.BufferedReader(raw, CHUNK_BYTES)
            if source.peek(len(GZIP))[: len(GZIP)] == GZIP:
                source = gzip.open(source)
            while data := source.read(CHUNK_BYTES):
                file.write(data)
    except Exception as error:  # protocol libraries raise errors of any type
        if _is_of_cache(error, target.parent):
            raise
        status = getattr(error, "status", 0)
        is_refused = isinstance(error, FileNotFoundError | PermissionError) or 400 <= status < 500
        is_late = time.monotonic() - started >= REQUEST_SECONDS
        raise _Failure(_reason(error), is_final=is_late or (is_refused and status not in BUSY)) from error


def _reason(error: Exception) -> str:
    """Why a shard cannot be fetched; addresses are left out, as they may hold a secret."""
    status = getattr(error, "status", 0)
    if status:
        return f"the server answered {status} {getattr(error, 'message', '')}".rstrip()
    if isinstance(error, FileNotFoundError):
        return "not found"
    if "Timeout" in type(error).__name__:
        return f"no data for {STALLED:.0f} s, or not complete after {REQUEST_SECONDS:.0f} s"
    reason = reason_of(error)
    if "://" in reason:
        return type(error).__name__
    return reason


def _open_address(address: str) -> Any:
    """File object with the content of a path or an address."""
    from fsspec.core import url_to_fs

    if scheme(address) not in ("http", "https"):
        filesystem, path = url_to_fs(address)
        return filesystem.open(path, "rb")
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=REQUEST_SECONDS, sock_connect=STALLED, sock_read=STALLED)
    options = {"trust_env": True, "timeout": timeout}
    filesystem, path = url_to_fs(address, client_kwargs=options, encoded=False)
    # One request for the whole file, and none for its size: there, fsspec takes any answer for "not found".
    return filesystem.open(path, "rb", block_size=0, size=-1)


def _is_of_cache(error: Exception, folder: Path) -> bool:
    """Whether an error is one of the cache's disk or of a file in the cache."""
    if not isinstance(error, OSError):
        return False
    return error.errno in DISK_FULL or str(error.filename).startswith(str(folder))


def _make_room(folder: Path, limit: float, keep: Sequence[Path]) -> None:
    """Remove what is left over, and the least recently used files if those of the folder are above its limit."""
    remove_unfinished_in(folder)
    files: list[tuple[int, int, Path]] = []
    for path in folder.iterdir():
        if path.suffix in (".tar", ".index") and not path.name.startswith("."):
            with suppress(FileNotFoundError):  # another process makes room too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in sorted(files):
        if total <= KEPT_SHARE * limit:
            break
        if path not in keep:
            with suppress(OSError):  # on Windows, one that is open cannot be removed
                path.unlink(missing_ok=True)
                total -= size
