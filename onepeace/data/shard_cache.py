"""Shards as local, uncompressed tars with an index: what makes any sample of them readable on its own.

A plain tar on the disk is read where it is. Others (.tar.gz, addresses, output of commands) are copied first: for one
pass to a temporary file, for training to a cache that all processes of a machine share. webdataset, fsspec and the
compression libraries of Python do the reading.
"""

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, NamedTuple

from onepeace.data.sample import Extent
from onepeace.data.tar_index import TarIndex, index_tar
from onepeace.errors import UserError
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import describe, scheme

STALLED = 60.0
"""Seconds without one byte after which a source is given up."""
WAITS = (1.0, 5.0)
"""Seconds before a failed download is tried again."""
OPEN_FILES = 256
"""Shards a process keeps open."""
CHUNK = 1 << 20
COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""By the first bytes of a file."""
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Shard:
    """A shard as an uncompressed tar on this machine."""

    place: str
    """Path or address."""
    path: str
    """The tar."""
    cache: "ShardCache" = field(compare=False, repr=False)

    def read(self, offset: int, size: int) -> bytes:
        """These bytes of the tar; UserError if the file is no longer what it was."""
        try:
            data = os.pread(_opened(self.path).fileno(), size, offset)
        except FileNotFoundError:  # removed from the cache to make room
            self.cache.open(self.place)
            data = os.pread(_opened(self.path).fileno(), size, offset)
        if len(data) < size:
            raise UserError(f"{describe(self.place)}: has become shorter since it was indexed")
        return data


class Members(NamedTuple):
    """The samples of a shard."""

    samples: list[dict[str, Any]]
    """``{"__key__": key, file ending: Extent}`` each, as `usable_sample` takes them."""
    broken: list[str]
    """One line per damage."""


@lru_cache(OPEN_FILES)
def _opened(path: str) -> IO[bytes]:
    return open(path, "rb", buffering=0)


class ShardCache:
    """Copies and indexes of shards in a folder, of limited size; the least recently used give way.

    Args:
        folder: for this alone; several processes may share it.
        max_bytes: of all its files.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, max_bytes: float) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise self._unwritable(error) from error

    def open(self, place: str) -> Members:
        """The samples of a shard, which is copied and indexed if it has not been; none if it cannot be read.

        Raises:
            UserError: the cache is too small, or cannot be written.
        """
        try:
            return self._open(place)
        except UserError:
            raise
        except Exception as error:  # whatever a protocol's library raises: the shard is left out
            if isinstance(error, OSError) and error.errno in DISK_IS_FULL:
                raise self._unwritable(error) from error
            return Members([], [f"{describe(place)}: {reason_of(error)}"])

    def _open(self, place: str) -> Members:
        from filelock import FileLock

        own = None if scheme(place) else Path(place)
        state = own.stat() if own else None
        identity = f"{place} {state.st_size} {state.st_mtime_ns}" if state else place
        digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
        index = self.folder / f"{digest}.json"
        path = own if own and not _compression(own) else self.folder / f"{digest}.tar"
        while True:
            try:
                found = TarIndex(*json.loads(index.read_text(encoding="utf-8")))
                for used in {index, path} - {own}:
                    os.utime(used)
                shard = Shard(place, str(path), self)
                samples: list[dict[str, Any]] = [
                    {"__key__": key, **{ending: Extent(shard, *extent) for ending, extent in members.items()}}
                    for key, members in found.samples
                ]
                return Members(samples, found.broken)
            except FileNotFoundError:
                with FileLock(self.folder / f"{digest[:2]}.lock"):
                    if not (index.exists() and path.exists()):
                        self._make(place, path, index)

    def _make(self, place: str, path: Path, index: Path) -> None:
        broken: list[str] = []
        if path.parent == self.folder:
            part = path.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            part.mkdir()
            try:
                made = part / "copy"
                with open(made, "wb") as file:
                    copy_plain(place, file, broken, part)
                self._make_room(made.stat().st_size, place)
                os.replace(made, path)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        with open(path, "rb") as file:
            found = index_tar(file, describe(place))
        self._make_room(0, place)
        write_text_atomic(index, json.dumps([found.samples, found.broken + broken]))

    def _make_room(self, size: int, place: str) -> None:
        if size > self.max_bytes:
            raise UserError(
                f"{describe(place)}: {size} bytes are more than the cache may hold, {self.max_bytes:.0f}; raise "
                "data.cache_gigabytes"
            )
        with os.scandir(self.folder) as entries:
            files = [(one.stat(), one.path) for one in entries if one.name.endswith((".tar", ".json"))]
        used = size + sum(state.st_size for state, _ in files)
        for state, name in sorted(files, key=lambda file: file[0].st_mtime):
            if used <= self.max_bytes:
                break
            Path(name).unlink(missing_ok=True)
            used -= state.st_size

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.folder}: copies and indexes of shards cannot be written there ({error.strerror or error}); "
            "set data.cache_folder"
        )


@contextmanager
def plain_file(place: str, broken: list[str]) -> Iterator[IO[bytes]]:
    """A shard as an open, uncompressed tar, for one pass: the file itself, or a temporary copy.

    Args:
        broken: gets a line if a compressed shard ends early.
    """
    if not scheme(place) and not _compression(Path(place)):
        with open(place, "rb") as file:
            yield file
        return
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as file:
        copy_plain(place, file, broken, Path(folder))
        yield file


def copy_plain(place: str, target: IO[bytes], broken: list[str], folder: Path) -> None:
    """Write the uncompressed tar of a shard to ``target``; what is downloaded lies in ``folder`` meanwhile."""
    path = Path(place)
    if scheme(place):
        path = folder / "download"
        if scheme(place) == "pipe":
            _run(place.strip()[len("pipe:") :], path)
        else:
            _download(place, path)
    _unpack(path, target, describe(place), broken)


def _compression(path: Path) -> Any:
    with open(path, "rb") as file:
        first = file.read(8)
    return next((opened for magic, opened in COMPRESSIONS.items() if first.startswith(magic)), None)


def _unpack(path: Path, target: IO[bytes], name: str, broken: list[str]) -> None:
    opened = _compression(path) or open
    with opened(path, "rb") as source:
        try:
            while data := source.read1(CHUNK):  # what there is, up to the damage
                target.write(data)
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            broken.append(f"{name}: cannot be unpacked to its end ({error})")
    target.flush()


def _run(command: str, target: Path) -> None:
    """Write the output of a shell command to a file; OSError if it fails or is silent for too long."""
    with open(target, "wb") as file:
        process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE)  # noqa: S602 (allowed by the recipe)
        output = process.stdout
        assert output is not None  # noqa: S101
        with process:
            try:
                while True:
                    if not wait([output], STALLED):  # type: ignore[list-item]
                        raise OSError(f"no byte came for {STALLED:g} seconds")
                    if not (data := os.read(output.fileno(), CHUNK)):
                        break
                    file.write(data)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            raise OSError(f"the command gave exit code {process.returncode}")


def _download(address: str, target: Path) -> None:
    """Copy what lies at an address to a file, by fsspec; after a failure once more, and again."""
    from fsspec.core import url_to_fs

    options = {}
    if scheme(address) in ("http", "https"):
        from aiohttp import ClientTimeout

        timeout = ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
        options = {"client_kwargs": {"trust_env": True, "timeout": timeout}, "encoded": False}
    files, path = url_to_fs(address, **options)
    for pause in (*WAITS, None):
        try:
            files.get_file(path, str(target))
            return
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:
            if pause is None:
                raise
            time.sleep(pause)


def reason_of(error: Exception) -> str:
    """One line without the address, which may hold a secret."""
    text = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    if text and "://" not in text:
        return text
    return "not found" if isinstance(error, FileNotFoundError) else type(error).__name__
