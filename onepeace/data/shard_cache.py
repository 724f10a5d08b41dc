"""Local, uncompressed and indexed copies of shards, for random access to their samples.

A plain tar on the disk is read in place. Others (.tar.gz, or at addresses that fsspec opens) are first copied to a
cache that all processes of a machine share. The index is made from the headers: webdataset groups the members (KEY.jpg
and KEY.txt are one sample); damaged parts are skipped and reported, and reading resumes after them.
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
from pathlib import Path
from typing import IO, Any, NamedTuple

from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic, write_text_atomic
from onepeace.files.cache import cache_folder
from onepeace.files.source import describe, reason_of, scheme

CACHE_BYTES = 20e9
STALLED = 60.0
"""Seconds without data after which a download fails."""
WAITS = (1.0, 5.0)
"""Seconds before each retry of a failed copy."""
CHUNK = 1 << 20
GZIP = b"\x1f\x8b"
"""First bytes of a compressed shard."""


class Extent(NamedTuple):
    """A member of a shard, as bytes of an uncompressed tar on this machine."""

    place: str
    """Path or address of the shard."""
    cache_bytes: float
    """Size limit of the cache, for `open_shard`."""
    path: str
    """Path of the tar."""
    offset: int
    size: int

    def __bool__(self) -> bool:
        return self.size > 0

    def read(self) -> bytes:
        """The bytes; UserError if the file has become shorter."""
        try:
            file = open(self.path, "rb", buffering=0)
        except FileNotFoundError:  # evicted from the cache
            open_shard(self.place, self.cache_bytes)
            file = open(self.path, "rb", buffering=0)
        with file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise UserError(f"{describe(self.place)}: has become shorter since it was indexed")
        return data


def content_of(value: Any) -> Any:
    """The value with each `Extent` replaced by its bytes, also in lists and dictionaries."""
    if isinstance(value, Extent):
        return value.read()
    if isinstance(value, dict):
        return {name: content_of(one) for name, one in value.items()}
    return [content_of(one) for one in value] if isinstance(value, list) else value


def open_shard(place: str, cache_bytes: float = CACHE_BYTES) -> tuple[list[dict[str, Any]], list[str]]:
    """Open a shard: copy and index it unless that is done, and list its samples; empty if it cannot be read.

    Args:
        place: an absolute path or an address.
        cache_bytes: maximum size of the cache's folder ``shards``, with copies and indexes; the least recently used
            files are removed; the shard itself is kept in any case.

    Returns:
        ``{"__key__": key, file ending: Extent}`` for each sample, as input of `usable_sample`, and a line per damage.

    Raises:
        UserError: the cache cannot be written.
    """
    folder = cache_folder() / "shards"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        identity, plain = place, False
        if not scheme(place):
            with open(place, "rb") as file:
                state, plain = os.fstat(file.fileno()), file.read(2) != GZIP
            identity = f"{place} {state.st_size} {state.st_mtime_ns}"
        copy = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.tar"
        path = place if plain else str(copy)
        samples, broken = _index(place, Path(path), copy.with_suffix(".json"), cache_bytes)
    except Exception as error:  # protocol libraries raise errors of any type; the shard is skipped
        reason = reason_of(error)
        if isinstance(error, OSError) and (
            error.errno in (errno.ENOSPC, errno.EDQUOT) or str(error.filename).startswith(str(folder))
        ):
            raise UserError(
                f"{folder}: copies and indexes of shards cannot be written there ({reason}); set ONEPEACE_CACHE"
            ) from error
        # The reason is left out if it quotes an address, which may hold a secret.
        return [], [f"{describe(place)}: {type(error).__name__ if '://' in reason else reason}"]
    return [
        {"__key__": key, **{ending: Extent(place, cache_bytes, path, *at) for ending, at in members.items()}}
        for key, members in samples
    ], broken


def _index(place: str, tar: Path, index: Path, cache_bytes: float) -> Any:
    """Result of `index_tar` from the cache; if it is missing, the shard is copied, if necessary, and indexed."""
    from filelock import FileLock

    folder, copied = index.parent, tar == index.with_suffix(".tar")
    while True:
        try:
            found = json.loads(index.read_text(encoding="utf-8"))
            for used in {index, tar} if copied else {index}:
                os.utime(used)
            return found
        except FileNotFoundError:
            with FileLock(folder / f"{index.name[:2]}.lock"):
                if not (index.exists() and tar.exists()):
                    damages: list[str] = []
                    if copied:
                        with write_atomic(tar) as temporary:
                            damages = _copy(place, temporary)
                    with open(tar, "rb") as file:
                        samples, broken = index_tar(file, describe(place))
                    write_text_atomic(index, json.dumps([samples, broken + damages]))
                    _make_room(folder, cache_bytes, but={tar.name, index.name})


def _make_room(folder: Path, at_most: float, but: set[str]) -> None:
    with suppress(FileNotFoundError):  # other processes remove files too
        files = [(path.stat(), path) for path in folder.iterdir() if path.suffix in (".tar", ".json")]
        used = sum(state.st_size for state, _ in files)
        for state, path in sorted(files, key=lambda file: file[0].st_mtime):
            if used > at_most and path.name not in but:
                path.unlink()
                used -= state.st_size


def _copy(place: str, target: Path) -> list[str]:
    """Write the uncompressed tar of a shard, with retries; returns a line if a compressed shard ends early."""
    import fsspec

    options: dict[str, Any] = {}
    if scheme(place) in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
        # block_size 0: one request for the whole file.
        options = {"client_kwargs": {"trust_env": True, "timeout": timeout}, "encoded": False, "block_size": 0}
    pauses = [*WAITS]
    while True:
        try:
            with fsspec.open(place, "rb", expand=False, **options) as raw, open(target, "wb") as file:
                source: Any = io.BufferedReader(raw, CHUNK)
                if source.peek(2)[:2] == GZIP:
                    source = gzip.open(source)
                try:
                    while data := source.read1(CHUNK):  # returns all data before a damage
                        file.write(data)
                except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                    return [f"{describe(place)}: cannot be unpacked to its end ({error})"]
            return []
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            if not pauses:
                raise
            time.sleep(pauses.pop(0))


def index_tar(file: IO[bytes], name: str) -> tuple[list[tuple[str, dict[str, tuple[int, int]]]], list[str]]:
    """Index of an uncompressed tar: (key, {file ending: (offset, size)}) for each sample, and a line that begins with
    ``name`` for each damage and each unusable member."""
    from webdataset.tariterators import group_by_keys

    broken: list[str] = []

    def note(error: Exception) -> bool:
        broken.append(f"{name}: {next(iter(error.args), '') or type(error).__name__}")
        return True

    return [
        (group["__key__"], {ending: place for ending, place in group.items() if not ending.startswith("__")})
        for group in group_by_keys(_members(file, name, broken), handler=note)
    ], broken


def _members(file: IO[bytes], name: str, broken: list[str]) -> Iterator[Any]:
    """Each complete regular file in webdataset's form, with (offset, size) in place of its data."""
    last, size, end = "the beginning", file.seek(0, 2), file.seek(0)

    def check(next_member: int) -> None:
        file.seek(end)
        if any(file.read(next_member - end)):
            broken.append(f"{name}: damaged after {last}, from byte {end} to {next_member}")

    try:
        # ignore_zeros skips blocks that are not headers, such as damaged ones.
        with tarfile.open(fileobj=file, mode="r:", ignore_zeros=True) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # this list would keep growing
                check(member.offset)
                last, end = member.name, tar.offset
                if member.offset_data + member.size > size:
                    broken.append(f"{name}: unexpected end of data")
                    return
                if member.isreg():
                    yield {"fname": member.name, "data": (member.offset_data, member.size), "__url__": name}
            check(size)
    except tarfile.TarError as error:
        broken.append(f"{name}: {error}")
