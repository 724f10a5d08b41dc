"""Derived files: arrays that can be made again, kept with a key and a digest.

A file is used only if it was made from the same (its key) and is as it was written (its digest); otherwise there is
none, and it is made again. Line 1 is the SHA-256 of all that follows, line 2 describes the arrays, whose bytes follow.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from onepeace.files.atomic import write_atomic

DIGEST_LINE = hashlib.sha256().digest_size * 2 + 1
ALIGNED = 64
"""Bytes to which the arrays are aligned."""
CHUNK = 1 << 20
ROWS = 1 << 13
"""Rows of an array that are written at once."""


class Derived(NamedTuple):
    """Content of a derived file."""

    arrays: dict[str, np.ndarray]
    """Read-only and mapped into memory."""
    about: Any
    """What else was written, as from JSON."""


def write_derived(path: Path, key: object, arrays: Mapping[str, np.ndarray], about: object = None) -> None:
    """Write a derived file; readers find the old or the new one.

    It is not synced to the disk: what a power cut leaves of it does not have its digest.

    Args:
        key: what it was made from, as JSON or str.
        about: further content, as JSON.

    Raises:
        OSError: the disk is full or not writable.
    """
    places = {}
    end = 0
    for name, array in arrays.items():
        places[name] = [array.dtype.str, array.shape, end]
        end += _aligned(array.nbytes)
    header = json.dumps({"key": str(key), "about": about, "arrays": places}).encode()
    padding = _aligned(DIGEST_LINE + len(header) + 1) - (DIGEST_LINE + len(header) + 1)
    digest = hashlib.sha256()
    with write_atomic(path, synced=False) as temporary, open(temporary, "wb") as file:
        file.seek(DIGEST_LINE)
        for part in _content(header + b" " * padding + b"\n", arrays.values()):
            digest.update(part)
            file.write(part)
        file.seek(0)
        file.write(f"{digest.hexdigest()}\n".encode())


def _content(header: bytes, arrays: Iterable[np.ndarray]) -> Iterator[Any]:
    """Yield the parts of a file after its digest."""
    yield header
    for array in arrays:
        for start in range(0, len(array), ROWS):
            yield np.ascontiguousarray(array[start : start + ROWS]).reshape(-1).view(np.uint8)
        yield bytes(_aligned(array.nbytes) - array.nbytes)
    yield bytes(ALIGNED)  # nothing at all could not be mapped


def read_derived(path: Path, key: object, *, most_checked: float = math.inf) -> Derived | None:
    """Content of a derived file; None if there is none, it has another key, or it is damaged.

    Args:
        most_checked: bytes of a file up to which its digest is compared, for which the whole file is read.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size <= most_checked and not _is_intact(file):
                return None
            file.seek(DIGEST_LINE)
            header = json.loads(file.readline())
            if header["key"] != str(key):
                return None
            content = np.memmap(file, np.uint8, "r", file.tell())
            arrays = {}
            for name, (dtype, shape, start) in header["arrays"].items():
                arrays[name] = np.ndarray(shape, dtype, content, start)
            return Derived(arrays, header["about"])
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):  # damaged, or of another kind
        return None


def _is_intact(file: BinaryIO) -> bool:
    expected = file.read(DIGEST_LINE)
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return expected == f"{digest.hexdigest()}\n".encode()


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
