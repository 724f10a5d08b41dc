"""Shards as local, uncompressed tars with an index: what makes any sample of them readable on its own.

A plain tar on the disk is read where it is. Others (.tar.gz, or at addresses that fsspec opens) are copied first to a
cache that all processes of a machine share. The index is made of headers alone: webdataset groups the members (KEY.jpg
and KEY.txt are one sample); what is damaged is skipped and named, and what follows it is found again.
"""

import errno
import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from onepeace.data.sample import Extent
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic, write_text_atomic
from onepeace.files.cache import cache_folder
from onepeace.files.source import describe, scheme

STALLED = 60.0
"""Seconds without one byte after which a source is given up."""
WAITS = (1.0, 5.0)
"""Seconds before a failed copy is tried again."""
OPEN_FILES = 256
"""Shards a process keeps open."""
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
"""The first bytes of a compressed shard."""
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Shard:
    """A shard as an uncompressed tar on this machine."""

    place: str
    """Path or address."""
    path: str
    """The tar."""
    version: str
    """Digest of its place, size and date: a file that is written again is another."""
    cache: "ShardCache" = field(compare=False, repr=False)

    def read(self, offset: int, size: int) -> bytes:
        """These bytes of the tar; UserError if the file is no longer what it was."""
        try:
            data = os.pread(_opened(self.path, self.version).fileno(), size, offset)
        except FileNotFoundError:  # removed from the cache to make room
            self.cache.open(self.place)
            data = os.pread(_opened(self.path, self.version).fileno(), size, offset)
        if len(data) < size:
            raise UserError(f"{describe(self.place)}: has become shorter since it was indexed")
        return data


@lru_cache(OPEN_FILES)
def _opened(path: str, version: str) -> IO[bytes]:
    return open(path, "rb", buffering=0)


class ShardCache:
    """Copies and indexes of shards, in ``shards`` of onepeace's cache; the least recently used give way.

    Args:
        max_bytes: of all files there; a larger shard stays alone.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, max_bytes: float = 20e9) -> None:
        self.folder, self.max_bytes = cache_folder() / "shards", max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise self._unwritable(error) from error

    def open(self, place: str) -> tuple[list[dict[str, Any]], list[str]]:
        """The samples of a shard, which is copied and indexed if it has not been; none if it cannot be read.

        Returns:
            ``{"__key__": key, file ending: Extent}`` for each, as `usable_sample` takes them, and a line per damage.

        Raises:
            UserError: the cache cannot be written.
        """
        try:
            return self._open(place)
        except Exception as error:  # whatever a protocol's library raises: the shard is left out
            if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
                raise self._unwritable(error) from error
            return [], [f"{describe(place)}: {_reason_of(error)}"]

    def _open(self, place: str) -> tuple[list[dict[str, Any]], list[str]]:
        from filelock import FileLock

        identity, path = place, None
        if not scheme(place):
            state = os.stat(place)
            identity = f"{place} {state.st_size} {state.st_mtime_ns}"
            with open(place, "rb") as file:
                path = None if file.read(2) == GZIP else Path(place)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
        index, copy = self.folder / f"{digest}.json", self.folder / f"{digest}.tar"
        while True:
            try:
                samples, broken = json.loads(index.read_text(encoding="utf-8"))
                for used in (index,) if path else (index, copy):
                    os.utime(used)
                break
            except FileNotFoundError:
                with FileLock(self.folder / f"{digest[:2]}.lock"):
                    if not (index.exists() and (path or copy).exists()):
                        self._make(place, path, copy, index)
        shard = Shard(place, str(path or copy), digest, self)
        return [
            {"__key__": key, **{ending: Extent(shard, *extent) for ending, extent in members.items()}}
            for key, members in samples
        ], broken

    def _make(self, place: str, path: Path | None, copy: Path, index: Path) -> None:
        broken: list[str] = []
        if path is None:
            with write_atomic(copy) as temporary:
                _copy(place, temporary, broken)
        with open(path or copy, "rb") as file:
            samples, damages = index_tar(file, describe(place))
        write_text_atomic(index, json.dumps([samples, damages + broken]))
        self._make_room(but={copy.name, index.name})

    def _make_room(self, but: set[str]) -> None:
        with os.scandir(self.folder) as entries:
            files = [(one.stat(), one) for one in entries if one.name.endswith((".tar", ".json"))]
        used = sum(state.st_size for state, _ in files)
        for state, one in sorted(files, key=lambda file: file[0].st_mtime):
            if used <= self.max_bytes:
                break
            if one.name not in but:
                Path(one.path).unlink(missing_ok=True)
                used -= state.st_size

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.folder}: copies and indexes of shards cannot be written there ({error.strerror or error}); "
            "set ONEPEACE_CACHE"
        )


def _copy(place: str, target: str | Path, broken: list[str]) -> None:
    """Write the uncompressed tar of a shard; after a failure once more, and again.

    Args:
        broken: gets a line if a compressed shard ends early.
    """
    import fsspec

    options: dict[str, Any] = {}
    if scheme(place) in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
        # block_size 0: one request for all of it.
        options = {"client_kwargs": {"trust_env": True, "timeout": timeout}, "encoded": False, "block_size": 0}
    for pause in (*WAITS, None):
        try:
            with fsspec.open(place, "rb", expand=False, **options) as raw, open(target, "wb") as file:
                source: Any = io.BufferedReader(raw, CHUNK)
                if source.peek(2)[:2] == GZIP:
                    source = gzip.open(source)
                try:
                    while data := source.read1(CHUNK):  # what there is, up to the damage
                        file.write(data)
                except DAMAGED as error:
                    broken.append(f"{describe(place)}: cannot be unpacked to its end ({error})")
            return
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            if pause is None or (isinstance(error, OSError) and error.errno in DISK_IS_FULL):
                raise
            time.sleep(pause)


def _reason_of(error: Exception) -> str:
    """One line without the address, which may hold a secret."""
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    if text and "://" not in text:
        return text
    return "not found" if isinstance(error, FileNotFoundError) else type(error).__name__


def index_tar(file: IO[bytes], name: str) -> tuple[list[tuple[str, dict[str, tuple[int, int]]]], list[str]]:
    """Index of an uncompressed tar: (key, {file ending: (offset, size)}) of each sample; and a line, which begins with
    ``name``, per damage and per member that cannot be used."""
    from webdataset.tariterators import group_by_keys

    broken: list[str] = []

    def note(error: Exception) -> bool:
        broken.append(f"{name}: {next(iter(error.args), '') or type(error).__name__}")
        return True

    members: Any = (
        {"fname": member, "data": place, "__url__": name} for member, *place in _members(file, name, broken)
    )
    samples = [
        (group["__key__"], {ending: place for ending, place in group.items() if not ending.startswith("__")})
        for group in group_by_keys(members, handler=note)
    ]
    return [one for one in samples if one[1]], broken


def _members(file: IO[bytes], name: str, broken: list[str]) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each regular file that is there as a whole."""
    last, end = "the beginning", file.seek(0)
    try:
        # Blocks that are no header, as those of a damage, are passed over as if they were empty.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # its list would grow with the shard
                if member.offset > end:
                    broken.append(f"{name}: damaged after {last}, from byte {end} to {member.offset}")
                last, end = member.name, tar.offset
                file.seek(0, 2)
                if member.offset_data + member.size > file.tell():
                    broken.append(f"{name}: unexpected end of data")
                    return
                if member.isreg():
                    yield member.name, member.offset_data, member.size
            file.seek(end)
            if any(file.read()):
                broken.append(f"{name}: damaged after {last}, from byte {end} to its end")
    except tarfile.TarError as error:
        broken.append(f"{name}: {error}")
