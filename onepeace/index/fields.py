"""What conditions on files are made of: fields, kinds, units, dates, and functions of Python that SQLite calls.

filters.py compiles conditions.
"""

import json
import math
import os
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, NamedTuple

from onepeace.errors import UsageError, UserError
from onepeace.files.globs import Globs

KINDS = {
    **dict.fromkeys(("image", "images", "picture", "pictures", "photo", "photos"), "image"),
    **dict.fromkeys(("audio", "audios", "sound", "sounds"), "audio"),
    **{"text": "text", "texts": "text", "video": "video", "videos": "video"},
}
"""Kind of file by name, with synonyms."""
UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "s": 1.0, "min": 60.0, "h": 3600.0}
LENGTHS = {"km": 1e3, "m": 1.0}
"""Units of the radius of near(...)."""
PERIODS: dict[str, tuple[timedelta, dict[str, Any]]] = {
    "%Y": (timedelta(366), {"month": 1, "day": 1}),
    "%Y-%m": (timedelta(31), {"day": 1}),
    "%Y-%m-%d": (timedelta(1), {}),
    "%Y-%m-%dT%H:%M": (timedelta(minutes=1), {}),
}
"""Formats of dates -> step from the start of a period into the next, and fields to reset to reach its start."""
SIMILAR = 0.75
"""Minimum similarity of a word that is suggested instead of an unknown one."""

EARTH_RADIUS = 6_371_009.0
"""Mean radius in metres."""


class Condition(NamedTuple):
    """SQL over the table `files`, with "?" for its parameters."""

    sql: str
    params: tuple[Any, ...] = ()
    type: str = ""
    """Type of the values of a field: number, date, text, path, kind, label (a text without regard to case), labels (a
    list of them) or any."""


def _tag(name: str, value_type: str) -> Condition:
    return Condition(f"json_extract(tags, '$.{name}')", (), value_type)


FIELDS = {
    "size": Condition("size", (), "number"),
    "width": Condition("width", (), "number"),
    "height": Condition("height", (), "number"),
    "duration": Condition("duration", (), "number"),
    "date": Condition("date", (), "date"),
    "mtime": Condition("mtime_ns / 1e9", (), "date"),
    "path": Condition("path", (), "path"),
    "caption": Condition("caption", (), "text"),
    "kind": Condition("modality", (), "kind"),
    "camera": _tag("camera", "label"),
    "make": _tag("make", "label"),
    "lens": _tag("lens", "label"),
    "title": _tag("title", "label"),
    "description": _tag("description", "label"),
    "artist": _tag("artist", "label"),
    "album": _tag("album", "label"),
    "genre": _tag("genre", "label"),
    "keyword": _tag("keywords", "labels"),
    "place": _tag("place", "labels"),
    "rating": _tag("rating", "number"),
}
"""Fields by name. A key of a file's metadata is a field too: metadata.NAME."""
POSITION = "json_extract(tags, '$.latitude'), json_extract(tags, '$.longitude')"


def kind_of(name: str) -> str:
    """The kind of file for a name: image, audio, text or video.

    Raises:
        UsageError: the name is unknown; suggests the nearest one.
    """
    kind = KINDS.get(name.lower())
    if kind is not None:
        return kind
    hint = suggestion(name.lower(), KINDS) or f"it can be {', '.join(dict.fromkeys(KINDS.values()))}"
    raise UsageError(f"{name!r} is not a kind of file; {hint}")


def suggestion(word: str, words: Iterable[str]) -> str:
    """A question for the nearest of some words; "" if none is near."""
    near = get_close_matches(word, list(words), 1, SIMILAR)
    return f"did you mean {near[0]}?" if near else ""


def period(text: str) -> tuple[float, float]:
    """Start of a year, month, day or minute of local time in unix seconds, and the first moment after it.

    Raises:
        UsageError: not a date, or one outside the range of the system clock.
    """
    for layout, (step, first) in PERIODS.items():
        with suppress(ValueError, OverflowError, OSError):  # the error depends on the platform
            start = datetime.strptime(text, layout)
            return start.timestamp(), (start + step).replace(**first).timestamp()
    raise UsageError(f"{text[:40]!r} is not a date; write 2024, 2024-05, 2024-05-01 or 2024-05-01T12:30")


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
