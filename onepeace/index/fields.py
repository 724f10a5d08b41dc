"""Fields of conditions on files: names, types of values, units and dates; filters.py compiles conditions on them."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from difflib import get_close_matches
from typing import Any, NamedTuple

from onepeace.errors import UsageError

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
