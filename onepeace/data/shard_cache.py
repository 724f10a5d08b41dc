"""Folder of the cache with the copies and the indexes of shards, which all processes of a machine share.

A plain tar on the disk is read in place. Others (.tar.gz, or at addresses that fsspec opens) are copied here. Above a
limit, the least recently used files are removed; a running total saves listing the folder for each new file.
"""

import errno
import gzip
import io
import os
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onepeace.errors import UserError, reason_of
from onepeace.files.cache import cache_folder
from onepeace.files.source import describe, scheme

CACHE_BYTES = 20e9
"""Default limit of the folder."""
KEPT_SHARE = 0.9
"""Share of the limit down to which files are removed, so that not every new file needs a list of all."""
SUFFIXES = (".tar", ".safetensors", ".json")
"""File endings of copies and indexes; .json was that of indexes in earlier versions."""
TOTAL = "total_bytes"
"""Name of the file with the running total."""
STALLED = 60.0
"""Seconds without data after which a download fails."""
PAUSES = (1.0, 5.0, 15.0)
"""Seconds before each further attempt to copy a shard."""
CHUNK_BYTES = 1 << 20
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a disk, or a user's part of it, without room."""
GZIP = b"\x1f\x8b"
"""First bytes of a compressed shard."""


class CacheFailure(UserError):
    """The cache cannot be written. Unlike a broken shard, it ends a run."""


def shard_cache_folder() -> Path:
    """The folder; it may not exist yet."""
    return cache_folder() / "shards"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise errors of the cache's disk as `CacheFailure`; other errors stay as they are."""
    try:
        yield
    except FileNotFoundError:  # another process has removed a file to make room
        raise
    except OSError as error:
        if not is_of_cache(error, folder):
            raise
        raise CacheFailure(
            f"copies and indexes of shards cannot be written there ({reason_of(error)}); make room, "
            "lower data.cache_gigabytes, or set ONEPEACE_CACHE to another folder",
            where=folder,
        ) from error


def is_of_cache(error: Exception, folder: Path) -> bool:
    """Whether an error is one of the cache's disk or of a file in the cache."""
    if not isinstance(error, OSError):
        return False
    return error.errno in DISK_FULL or str(error.filename).startswith(str(folder))


def make_room(folder: Path, limit: float, added: list[Path]) -> None:
    """Count new files, and remove the least recently used others if the folder is above its limit."""
    from filelock import FileLock

    added_bytes = sum(path.stat().st_size for path in added)
    total_file = folder / TOTAL
    with FileLock(folder / f"{TOTAL}.lock"):
        try:
            total = int(total_file.read_text()) + added_bytes
        except (FileNotFoundError, ValueError):
            total = sum(size for _, size, _ in _files_by_age(folder))
        if total > limit:
            total = _remove_oldest(folder, KEPT_SHARE * limit, added)
        total_file.write_text(str(total))


def _files_by_age(folder: Path) -> list[tuple[int, int, Path]]:
    """Time of last use, size and path of each file, the oldest first."""
    files = []
    for path in folder.iterdir():
        if path.suffix in SUFFIXES and not path.name.startswith("."):
            with suppress(FileNotFoundError):  # somebody else removes files too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
    return sorted(files)


def _remove_oldest(folder: Path, kept_bytes: float, keep: list[Path]) -> int:
    """Remove the least recently used files until at most ``kept_bytes`` remain; returns the size of what remains."""
    files = _files_by_age(folder)
    total = sum(size for _, size, _ in files)
    for _, size, path in files:
        if total <= kept_bytes:
            break
        if path not in keep:
            with suppress(OSError):  # on Windows, one that is open cannot be removed
                path.unlink(missing_ok=True)
                total -= size
    return total


def copy_shard(address: str, target: Path) -> list[str]:
    """Write the uncompressed tar of a shard, with several attempts.

    Returns:
        A line if a compressed shard ends early.

    Raises:
        Exception: any error of the protocol's library, after the last attempt.
    """
    pauses = [*PAUSES]
    while True:
        try:
            return _copy_once(address, target)
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # protocol libraries raise errors of any type
            if not pauses or getattr(error, "errno", None) in DISK_FULL:
                raise
            time.sleep(pauses.pop(0))


def _copy_once(address: str, target: Path) -> list[str]:
    with _open_address(address) as raw, open(target, "wb") as file:
        source: Any = io.BufferedReader(raw, CHUNK_BYTES)
        if source.peek(len(GZIP))[: len(GZIP)] == GZIP:
            source = gzip.open(source)
        try:
            while data := source.read1(CHUNK_BYTES):  # returns all data before a damage
                file.write(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            return [f"{describe(address)}: cannot be unpacked to its end ({error})"]
    return []


def _open_address(address: str) -> Any:
    """File object with the content of a path or an address."""
    from fsspec.core import url_to_fs

    if scheme(address) not in ("http", "https"):
        filesystem, path = url_to_fs(address)
        return filesystem.open(path, "rb")
    from aiohttp import ClientTimeout

    timeout = ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
    options = {"trust_env": True, "timeout": timeout}
    filesystem, path = url_to_fs(address, client_kwargs=options, encoded=False)
    # One request for the whole file, and none for its size: there, fsspec takes any answer for "not found".
    return filesystem.open(path, "rb", block_size=0, size=-1)


def touch(*paths: Path) -> None:
    """Mark files as used now; FileNotFoundError if one is missing."""
    for path in paths:
        os.utime(path)
