"""Derived files: arrays that can be made again, kept with a key and a digest.

A file is used only if it was made from the same (its key) and is as it was written (its digest); otherwise there is
none, and it is made again. Line 1 has the SHA-256 of all that follows and that of line 2, which describes the arrays;
their bytes follow.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from onepeace.files.atomic import write_atomic

DIGEST_LINE = 2 * (2 * hashlib.sha256().digest_size + 1)
"""Bytes of line 1: two digests in hexadecimal, with what separates and ends them."""
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
    header += b" " * padding + b"\n"
    digest = hashlib.sha256()
    with write_atomic(path, synced=False) as temporary, open(temporary, "wb") as file:
        file.seek(DIGEST_LINE)
        for part in _content(header, arrays.values()):
            digest.update(part)
            file.write(part)
        file.seek(0)
        file.write(f"{digest.hexdigest()} {hashlib.sha256(header).hexdigest()}\n".encode())


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
        most_checked: bytes of a file up to which its digest is compared, for which the whole file is read. That of its
            line 2 is always compared.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            first, second = file.read(DIGEST_LINE).split()
            line = file.readline()
            start_of_arrays = file.tell()
            digest = hashlib.sha256(line)
            if digest.hexdigest().encode() != second:
                return None
            if os.fstat(file.fileno()).st_size <= most_checked:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                if digest.hexdigest().encode() != first:
                    return None
            header = json.loads(line)
            if header["key"] != str(key):
                return None
            content = np.memmap(file, np.uint8, "r", start_of_arrays)
            arrays = {}
            for name, (dtype, shape, start) in header["arrays"].items():
                arrays[name] = np.ndarray(shape, dtype, content, start)
            return Derived(arrays, header["about"])
    except (FileNotFoundError, AttributeError, KeyError, TypeError, ValueError):  # damaged, or of another kind
        return None


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
