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
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from onepeace.data.sample import Extent
from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic, write_text_atomic
from onepeace.files.cache import cache_folder
from onepeace.files.source import describe, reason_of, scheme

CACHE_BYTES = 20e9
STALLED = 60.0
"""Seconds without one byte after which a source is given up."""
WAITS = (1.0, 5.0)
"""Seconds before a failed copy is tried again."""
OPEN_FILES = 256
"""Shards a process keeps open."""
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
"""The first bytes of a compressed shard."""


@dataclass(frozen=True)
class Shard:
    """A shard as an uncompressed tar on this machine."""

    place: str
    """Path or address."""
    path: str
    """The tar."""
    version: str
    """Digest of its place, size and date: a file that is written again is another."""
    cache_bytes: float = field(compare=False)
    """See `open_shard`."""

    def read(self, offset: int, size: int) -> bytes:
        """These bytes of the tar; UserError if the file is no longer what it was."""
        try:
            file = _opened(self.path, self.version)  # held: of two threads that open it at once, one's is not cached
        except FileNotFoundError:  # removed from the cache to make room
            open_shard(self.place, self.cache_bytes)
            file = _opened(self.path, self.version)
        data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise UserError(f"{describe(self.place)}: has become shorter since it was indexed")
        return data


@lru_cache(OPEN_FILES)
def _opened(path: str, version: str) -> IO[bytes]:
    return open(path, "rb", buffering=0)


def open_shard(place: str, cache_bytes: float = CACHE_BYTES) -> tuple[list[dict[str, Any]], list[str]]:
    """The samples of a shard, which is copied and indexed if it has not been; none if it cannot be read.

    Args:
        place: an absolute path or an address.
        cache_bytes: size at most of the folder ``shards`` of onepeace's cache, with copies and indexes; the least
            recently used give way, and a larger shard stays alone.

    Returns:
        ``{"__key__": key, file ending: Extent}`` for each, as `usable_sample` takes them, and a line per damage.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = cache_folder() / "shards"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shard = _located(place, folder, cache_bytes)
        samples, broken = _index(shard, folder)
    except Exception as error:  # whatever a protocol's library raises: the shard is left out
        reason = reason_of(error)
        if isinstance(error, OSError) and (
            error.errno in (errno.ENOSPC, errno.EDQUOT) or str(error.filename).startswith(str(folder))
        ):
            raise UserError(
                f"{folder}: copies and indexes of shards cannot be written there ({reason}); set ONEPEACE_CACHE"
            ) from error
        # An address may hold a secret.
        return [], [f"{describe(place)}: {type(error).__name__ if '://' in reason else reason}"]
    return [
        {"__key__": key, **{ending: Extent(shard, *extent) for ending, extent in members.items()}}
        for key, members in samples
    ], broken


def _located(place: str, folder: Path, cache_bytes: float) -> Shard:
    identity, plain = place, False
    if not scheme(place):
        with open(place, "rb") as file:
            state, plain = os.fstat(file.fileno()), file.read(2) != GZIP
        identity = f"{place} {state.st_size} {state.st_mtime_ns}"
    version = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return Shard(place, place if plain else str(folder / f"{version}.tar"), version, cache_bytes)


def _index(shard: Shard, folder: Path) -> Any:
    """Result of `index_tar`, from the cache; if it is not there, the shard is copied, where need be, and indexed."""
    from filelock import FileLock

    tar, index = Path(shard.path), folder / f"{shard.version}.json"
    while True:
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            for used in {index, tar} if tar.parent == folder else {index}:
                os.utime(used)
            return found
        except FileNotFoundError:
            with FileLock(folder / f"{shard.version[:2]}.lock"):
                if not (index.exists() and tar.exists()):
                    broken: list[str] = []
                    if shard.path != shard.place:
                        with write_atomic(tar) as temporary:
                            _copy(shard.place, temporary, broken)
                    with open(tar, "rb") as file:
                        samples, damages = index_tar(file, describe(shard.place))
                    write_text_atomic(index, json.dumps([samples, damages + broken]))
                    _make_room(folder, shard.cache_bytes, but={tar.name, index.name})


def _make_room(folder: Path, at_most: float, but: set[str]) -> None:
    with suppress(FileNotFoundError):  # other processes make room too
        files = [(path.stat(), path) for path in folder.iterdir() if path.suffix in (".tar", ".json")]
        used = sum(state.st_size for state, _ in files)
        for state, path in sorted(files, key=lambda file: file[0].st_mtime):
            if used > at_most and path.name not in but:
                path.unlink()
                used -= state.st_size


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
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    broken.append(f"{describe(place)}: cannot be unpacked to its end ({error})")
            return
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            if pause is None:
                raise
            time.sleep(pause)


def index_tar(file: IO[bytes], name: str) -> tuple[list[tuple[str, dict[str, tuple[int, int]]]], list[str]]:
    """Index of an uncompressed tar: (key, {file ending: (offset, size)}) of each sample; and a line, which begins with
    ``name``, per damage and per member that cannot be used."""
    from webdataset.tariterators import group_by_keys

    broken: list[str] = []

    def note(error: Exception) -> bool:
        broken.append(f"{name}: {next(iter(error.args), '') or type(error).__name__}")
        return True

    members: Any = ({"fname": fname, "data": place, "__url__": name} for fname, place in _members(file, name, broken))
    return [
        (group["__key__"], {ending: place for ending, place in group.items() if not ending.startswith("__")})
        for group in group_by_keys(members, handler=note)
    ], broken


def _members(file: IO[bytes], name: str, broken: list[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(name, (offset, size)) of each regular file that is there as a whole."""
    last, size, end = "the beginning", file.seek(0, 2), file.seek(0)

    def check(next_member: int) -> None:
        file.seek(end)
        if any(file.read(next_member - end)):
            broken.append(f"{name}: damaged after {last}, from byte {end} to {next_member}")

    try:
        # Blocks that are no header, as those of a damage, are passed over as if they were empty.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # its list would grow with the shard
                check(member.offset)
                last, end = member.name, tar.offset
                if member.offset_data + member.size > size:
                    broken.append(f"{name}: unexpected end of data")
                    return
                if member.isreg():
                    yield member.name, (member.offset_data, member.size)
            check(size)
    except tarfile.TarError as error:
        broken.append(f"{name}: {error}")
