"""Arrays in files that are mapped, never read as a whole: what an index derives from its database.

    NAME.json          header: the state of the index that the arrays hold, the length and checksum of each
    NAME-TOKEN.ARRAY   the numbers of an array, row after row

A writer adds rows behind those that the header counts, waits until they are on the disk, and then replaces the header.
So a header never promises more than there is, and what a killed writer has added is overwritten by the next one. Arrays
written anew get another token; the files of the old one are removed after that; processes that have mapped
them keep them.
"""

import json
import logging
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from onepeace.files.atomic import write_text_atomic

log = logging.getLogger(__name__)

VERIFIED = 1 << 23
"""Bytes up to which arrays are compared with their checksums when they are opened, in 6 ms at most; larger ones are
compared by `index check`."""
CHUNK = 1 << 24
"""Bytes that a checksum reads at once."""
TRIES = 3
"""Times that arrays are opened which a writer replaces meanwhile."""

Types = Mapping[str, np.dtype]
"""Type of a row of each array."""
State = dict[str, Any]
"""What the arrays hold; values of JSON."""


@dataclass(frozen=True)
class Header:
    """Content of the header."""

    token: str
    state: State
    lengths: dict[str, int]
    """Rows of each array."""
    checksums: dict[str, int]
    """CRC-32 of each array."""

    def is_of(self, key: State) -> bool:
        """Whether the state has these values."""
        return key.items() <= self.state.items()


@dataclass(frozen=True)
class ArrayFiles:
    """Arrays of one state, memory-mapped."""

    header: Header
    arrays: dict[str, np.ndarray]
    paths: dict[str, Path]

    def is_whole(self) -> bool:
        """Whether the files still have their full length; reading past the end of a shortened one is a bus error."""
        for name, array in self.arrays.items():
            if _is_shorter(self.paths[name], array.nbytes):
                return False
        return True

    def damaged(self) -> list[str]:
        """Names of the arrays that differ from what was written; reads all of them."""
        names = []
        for name, array in self.arrays.items():
            if _checksum(array) != self.header.checksums[name]:
                names.append(name)
        return names


def _is_shorter(path: Path, size: int) -> bool:
    with suppress(OSError):  # a file that was removed stays mapped
        return os.stat(path).st_size < size
    return False


def _checksum(array: np.ndarray) -> int:
    content = array.view(np.uint8).reshape(-1)
    crc = 0
    for start in range(0, len(content), CHUNK):
        crc = zlib.crc32(content[start : start + CHUNK].data, crc)
    return crc


def header_of(folder: Path, name: str) -> Path:
    """Path of the header."""
    return folder / f"{name}.json"


def files_of(folder: Path, name: str) -> list[Path]:
    """All files of a name, those that killed writers left too: arrays, then the header."""
    header = header_of(folder, name)
    arrays = sorted(folder.glob(f"{name}-*"))
    return [*arrays, header] if header.exists() else arrays


def read_header(folder: Path, name: str) -> Header | None:
    """The header; None if there is none, or it is damaged, which is logged."""
    path = header_of(folder, name)
    try:
        text, _, checksum = path.read_text(encoding="utf-8").rpartition("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError):
        text, checksum = "", ""
    if not text or f"{zlib.crc32(text.encode()):08x}" != checksum:
        log.warning("%s: not what was written, and not used", path)
        return None
    return Header(**json.loads(text))


def open_arrays(folder: Path, name: str, types: Types, key: State) -> ArrayFiles | None:
    """The arrays that the header names; None if there are none, or they are damaged, which is logged.

    Args:
        key: what tells whether they are of this index; None is returned for others, whose types may be others.
    """
    for _ in range(TRIES):
        header = read_header(folder, name)
        if header is None or not header.is_of(key):
            return None
        try:
            return _map(folder, name, header, types)
        except FileNotFoundError:  # a writer may just have replaced them
            continue
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s: not what was written, and not used (%s)", header_of(folder, name), error)
            return None
    log.warning("%s: its arrays are missing", header_of(folder, name))
    return None


def _map(folder: Path, name: str, header: Header, types: Types) -> ArrayFiles:
    arrays = {}
    paths = {}
    for array, dtype in types.items():
        paths[array] = folder / f"{name}-{header.token}.{array}"
        arrays[array] = _mapped(paths[array], dtype, header.lengths[array])
    files = ArrayFiles(header, arrays, paths)
    is_small = sum(content.nbytes for content in arrays.values()) <= VERIFIED
    if is_small and (damaged := files.damaged()):
        raise ValueError(f"{damaged[0]} has another checksum")
    return files


def _mapped(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    """The first rows of a file.

    Raises:
        ValueError: the file is too short.
    """
    size = path.stat().st_size
    if size < length * dtype.itemsize:
        raise ValueError(f"{path.name} has {size} bytes of {length * dtype.itemsize}")
    if not length:
        return np.empty(0, dtype)
    mapped = np.memmap(path, dtype, "r", shape=(length,))
    return mapped.view(np.ndarray)  # ten times faster for single numbers


class ArrayWriter:
    """Adds rows to arrays, or writes new ones; a context manager. Without `commit` everything stays as it was.

    Args:
        before: the arrays to add to; None = write new ones.

    Raises:
        OSError: the disk is full or not writable.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        types: Types,
        before: ArrayFiles | None = None,
    ) -> None:
        self.folder = folder
        self.name = name
        self.types = types
        self.token = before.header.token if before else secrets.token_hex(4)
        self.lengths = dict(before.header.lengths) if before else dict.fromkeys(types, 0)
        self.checksums = dict(before.header.checksums) if before else dict.fromkeys(types, 0)
        self._open_files = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        self._is_committed = before is not None

    def __enter__(self) -> "ArrayWriter":
        for array, dtype in self.types.items():
            path = self._path(array)
            path.touch()
            file = self._open_files.enter_context(open(path, "r+b"))
            file.seek(self.lengths[array] * dtype.itemsize)
            self._files[array] = file
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._open_files.close()
        finally:
            if not self._is_committed:
                for array in self.types:
                    self._path(array).unlink(missing_ok=True)

    def _path(self, array: str) -> Path:
        return self.folder / f"{self.name}-{self.token}.{array}"

    def add(self, array: str, rows: np.ndarray) -> None:
        """Add rows to an array."""
        contiguous = np.ascontiguousarray(rows, self.types[array].base)
        content = contiguous.view(np.uint8).reshape(-1)
        self._files[array].write(content.data)
        self.checksums[array] = zlib.crc32(content.data, self.checksums[array])
        self.lengths[array] += len(rows)

    def commit(self, state: State) -> None:
        """Make the added rows count, as this state of the index, and remove the files of older tokens."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        header = Header(self.token, state, self.lengths, self.checksums)
        text = json.dumps(vars(header))
        write_text_atomic(header_of(self.folder, self.name), f"{text}\n{zlib.crc32(text.encode()):08x}")
        self._is_committed = True
        for path in self.folder.glob(f"{self.name}-*"):
            if path.name.partition(".")[0] != f"{self.name}-{self.token}":
                path.unlink(missing_ok=True)


def faults(
    folder: Path,
    name: str,
    types: Types,
    key: State,
) -> Iterator[str]:
    """Yield one line for each file that is not what was written; reads all of them. Files with another key, of before
    the index was moved to another model, are left to the next writer."""
    if not header_of(folder, name).exists():
        return
    header = read_header(folder, name)
    if header is not None and not header.is_of(key):
        return
    files = open_arrays(folder, name, types, key)
    if files is None:
        yield f"{name}.json, or an array that it names, is not what was written"
        return
    for array in files.damaged():
        yield f"{files.paths[array].name} is not what was written"
