"""Functions of Python that the conditions of filters.py call in SQLite."""

import json
import math
import os
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from onepeace.errors import UserError
from onepeace.files.globs import Globs

EARTH_RADIUS = 6_371_009.0
"""Mean radius in metres."""


def register(connection: sqlite3.Connection, roots: Iterable[str] = ()) -> None:
    """Register the functions with a connection.

    Args:
        roots: indexed folders; patterns match paths relative to them, and whole paths.
    """
    folders = [_composed(root.rstrip(os.sep) + os.sep) for root in roots]

    def path_fits(path: bytes, pattern: str) -> bool:
        name = _composed(os.fsdecode(path))
        globs = compile_globs(_composed(pattern))
        forms = [name.lstrip(os.sep)]
        for folder in folders:
            if name.startswith(folder):
                forms.append(name.removeprefix(folder))
        return any(globs.matches(form.replace(os.sep, "/")) for form in forms)

    def add(function: Callable[..., Any], num_arguments: int) -> None:
        connection.create_function(function.__name__, num_arguments, function, deterministic=True)

    add(path_fits, 2)
    add(contains, 2)
    add(is_same, 2)
    add(has_same, 2)
    add(has_containing, 2)
    add(number, 1)
    add(distance, 4)


def contains(text: object, part: str) -> bool | None:
    """Whether a text, or a path in bytes, contains a part, without regard to case."""
    if not isinstance(text, (str, bytes)):  # a number in the metadata contains no text
        return None
    return _folded(part) in _folded(os.fsdecode(text))


def is_same(text: object, other: str) -> bool | None:
    """Whether two texts are the same, without regard to case."""
    if not isinstance(text, str):
        return None
    return _folded(text) == _folded(other)


def has_same(texts: str | None, other: str) -> bool | None:
    """Whether a text is in a list in JSON, without regard to case."""
    if texts is None:
        return None
    return any(is_same(text, other) for text in json.loads(texts))


def has_containing(texts: str | None, part: str) -> bool | None:
    """Whether a text of a list in JSON contains a part, without regard to case."""
    if texts is None:
        return None
    return any(contains(text, part) for text in json.loads(texts))


def number(value: Any) -> float | None:
    """A number, or the number that a text is, as in a cell of a .csv file."""
    with suppress(ValueError, TypeError):
        return value if isinstance(value, int) else float(value)
    return None


def distance(
    latitude: float | None,
    longitude: float | None,
    latitude2: float,
    longitude2: float,
) -> float | None:
    """Metres between two positions in degrees, on a sphere (haversine formula)."""
    if latitude is None or longitude is None:
        return None
    phi = math.radians(latitude)
    phi2 = math.radians(latitude2)
    north = math.sin((phi2 - phi) / 2)
    east = math.sin(math.radians(longitude2 - longitude) / 2)
    square = north**2 + math.cos(phi) * math.cos(phi2) * east**2
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(square)))


def _composed(text: str) -> str:
    """Compose letters with their accents into single characters; macOS decomposes them in file names."""
    return unicodedata.normalize("NFC", text)


def _folded(text: str) -> str:
    return _composed(text).casefold()


@lru_cache(64)
def compile_globs(pattern: str) -> Globs:
    """Compile the pattern of path.match; UserError if it is not exactly one."""
    globs = Globs([pattern], "path.match")
    if globs.includes != 1:
        raise UserError("path.match: empty, a comment, or begins with !; write not path.match(...)")
    return globs
