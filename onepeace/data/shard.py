"""A shard on this machine: its file, its index, and reading of members.

The file is the shard itself or its copy in the cache (shard_cache.py). Its state is compared whenever it is opened or
read, so that a file that was replaced is never read with the index of another.
"""

import hashlib
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.data.index import TarIndex, index_tar, read_index, write_index
from onepeace.data.shard_cache import (
    CACHE_BYTES,
    GZIP,
    copy_shard,
    is_of_cache,
    make_room,
    shard_cache_folder,
    touch,
    writing,
)
from onepeace.errors import UserError, reason_of
from onepeace.files.atomic import write_atomic
from onepeace.files.source import describe, scheme

READ_PAUSES = (0.1, 1.0)
"""Seconds before each further attempt to read a file on the disk."""
READING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags for opening a file; without O_NONBLOCK, opening a named pipe would wait for a writer."""
OPEN_FILES = 128
"""Maximum number of shards that a process keeps open."""


class UnreadableShard(UserError):
    """A shard cannot be opened or read any more: all of its samples are lost."""


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

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the tar, with several attempts.

        Raises:
            UnreadableShard: the file is gone, has changed, or cannot be read.
        """
        if self.failure is not None:
            raise self.failure
        try:
            return _with_pauses(lambda: self._read_once(offset, size))
        except UnreadableShard as error:
            self.failure = error
        except OSError as error:
            self.failure = UnreadableShard(f"{describe(self.address)}: cannot be read ({reason_of(error)})")
        raise self.failure

    def _read_once(self, offset: int, size: int) -> bytes:
        try:
            data = _opened(self).read(offset, size, self)
        except FileNotFoundError:
            if not self.is_copy:
                raise
            open_shard(self.address, self.cache_bytes)  # the copy was removed to make room
            data = _opened(self).read(offset, size, self)
        return data

    def check(self, status: os.stat_result) -> None:
        """`UnreadableShard` unless this is the state of the file that was indexed."""
        current = FileState(status.st_size)
        if not self.is_copy:
            current = state_of(status)
        if current != self.state:
            raise UnreadableShard(
                f"has changed since it was indexed ({self.state.size} bytes, now "
                f"{current.size}); start again with shards that do not change",
                where=describe(self.address),
            )


class Extent(NamedTuple):
    """A member of a shard."""

    file: ShardFile
    offset: int
    size: int

    def __bool__(self) -> bool:
        return self.size > 0

    def read(self) -> bytes:
        """The bytes; see `ShardFile.read`."""
        return self.file.read(self.offset, self.size)


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
    """A shard whose samples can be read by their number, 0 to ``len(index) - 1``."""

    file: ShardFile
    index: TarIndex

    @cached_property
    def name(self) -> str:
        """Its path, or its address without what may be secret."""
        return describe(self.file.address)

    @property
    def copied_bytes(self) -> int:
        """Size of its copy in the cache; 0 if it is read in place."""
        return self.file.state.size if self.file.is_copy else 0

    def members(self, row: int) -> dict[str, Extent]:
        """The members of a sample by file ending."""
        extents: dict[str, Extent] = {}
        for ending, (offset, size) in self.index.members(row).items():
            extents[ending] = Extent(self.file, offset, size)
        return extents


def open_shard(address: str, cache_bytes: float = CACHE_BYTES) -> Shard:
    """Open a shard; the first time, it is indexed and, if it is compressed or elsewhere, copied to the cache.

    Args:
        address: an absolute path or an address.
        cache_bytes: maximum size of the cache's folder ``shards``, with copies and indexes; the least recently used
            files are removed; those of this shard are kept in any case.

    Raises:
        UnreadableShard: the shard cannot be read.
        CacheFailure: the cache cannot be written.
    """
    folder = shard_cache_folder()

    def attempt() -> Shard:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            return _open_once(address, cache_bytes, folder)

    try:
        return _with_pauses(attempt)
    except OSError as error:
        raise _unreadable(address, error) from error


def _unreadable(address: str, error: Exception) -> UnreadableShard:
    reason = reason_of(error)
    if "://" in reason:  # it quotes an address, which may hold a secret
        reason = type(error).__name__
    return UnreadableShard(f"{reason}", where=describe(address))


def _open_once(address: str, cache_bytes: float, folder: Path) -> Shard:
    state = FileState(0)
    identity = address
    is_copied = True
    if not scheme(address):
        opened = OpenFile(address)
        state = state_of(opened.status)
        identity = f"{address} {state}"
        is_copied = opened.read_any(0, len(GZIP)) == GZIP
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    tar = Path(address)
    if is_copied:
        tar = folder / f"{name}.tar"
    index = _cached_index(address, tar, folder / f"{name}.safetensors", cache_bytes)
    if is_copied:
        state = FileState(tar.stat().st_size)
    return Shard(ShardFile(address, str(tar), state, cache_bytes), index)


def _cached_index(address: str, tar: Path, path: Path, cache_bytes: float) -> TarIndex:
    """Index of a shard from the cache; if it is missing, the shard is copied, if necessary, and indexed."""
    from filelock import FileLock

    folder = path.parent
    is_copied = tar.parent == folder
    files = [path]
    if is_copied:
        files.append(tar)
    while True:
        try:
            touch(*files)
            return read_index(path)
        except FileNotFoundError:
            pass
        with FileLock(folder / f"{path.name[:3]}.lock"):
            if all(file.exists() for file in files):
                continue
            damages: list[str] = []
            if is_copied:
                damages = _copy(address, tar)
            with open(tar, "rb", buffering=0) as file:
                index = index_tar(file, describe(address))
            index.damages.extend(damages)
            write_index(path, index)
            make_room(folder, cache_bytes, added=files)


def _copy(address: str, tar: Path) -> list[str]:
    """Copy a shard; returns a line if a compressed shard ends early."""
    with write_atomic(tar) as temporary:
        try:
            return copy_shard(address, temporary)
        except Exception as error:  # protocol libraries raise errors of any type
            if is_of_cache(error, tar.parent):
                raise
            raise _unreadable(address, error) from error


def state_of(status: os.stat_result) -> FileState:
    """State of a file that is not a copy."""
    return FileState(status.st_size, status.st_mtime_ns, status.st_ino)


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

    def read(self, offset: int, size: int, file: ShardFile) -> bytes:
        """Bytes of the file, whose state is checked."""
        file.check(os.fstat(self.descriptor))
        data = self.read_any(offset, size)
        if len(data) < size:
            raise OSError(f"{len(data)} bytes in place of {size}")
        return data

    def read_any(self, offset: int, size: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        if hasattr(os, "pread"):  # processes that share the descriptor do not share a position
            return os.pread(self.descriptor, size, offset)
        os.lseek(self.descriptor, offset, os.SEEK_SET)
        return os.read(self.descriptor, size)


def _open_file(file: ShardFile) -> OpenFile:
    return OpenFile(file.path)


_opened: Callable[[ShardFile], OpenFile] = _open_file
"""Opens a file for reading, or returns one that is open."""
if hasattr(os, "pread"):  # not on Windows, where an open file can be neither removed nor replaced
    _opened = lru_cache(maxsize=OPEN_FILES)(_open_file)


def _with_pauses(attempt: Callable[[], Any]) -> Any:
    """Result of a function that is tried again, after a pause, when it fails with an OSError."""
    for pause in READ_PAUSES:
        try:
            return attempt()
        except OSError:
            time.sleep(pause)
            forget_open_files()
    return attempt()


def forget_open_files() -> None:
    """Close the files that this process keeps open for reading."""
    if _opened is not _open_file:
        _opened.cache_clear()  # type: ignore[attr-defined]
