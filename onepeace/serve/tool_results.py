"""What the tools of an index answer (tools.py), as JSON; schemas are made of these types."""

import os
from datetime import datetime
from typing import Any

from typing_extensions import NotRequired, TypedDict  # comes with torch; pydantic reads typing's from Python 3.12 on

from onepeace.index.search import Hit

CAPTION = 300
"""Characters of a caption that are given."""
COPIES = 5
"""Copies of a file that are named."""


class File(TypedDict):
    path: str
    """Relative to the working folder where it lies below it."""
    modality: str


class FoundFile(File):
    """What is not known of a file is left out."""

    match: NotRequired[float]
    """Probability that it is what was searched for."""
    score: float
    """Cosine."""
    start: NotRequired[float]
    end: NotRequired[float]
    """Seconds of the part that was found."""
    found_by: NotRequired[str]
    """Of a video: image or audio."""
    caption: NotRequired[str]
    date: NotRequired[str]
    width: NotRequired[int]
    height: NotRequired[int]
    duration: NotRequired[float]
    copies: NotRequired[list[str]]
    """Paths of further files that are nearly the same, the first of them."""
    more_copies: NotRequired[int]
    """How many there are beyond those."""


class Found(TypedDict):
    relevant: bool | None
    """Whether any file is likely to be what is meant; None where that cannot be said."""
    compared: int
    """Files that the filters allow."""
    files: list[FoundFile]


class ClassifiedFile(File):
    labels: dict[str, float]
    """Probabilities of the best labels."""


class Classified(TypedDict):
    files: list[ClassifiedFile]


class CaptionedFile(File):
    caption: NotRequired[str]
    confidence: NotRequired[float]
    """From 0 to 1."""
    problem: NotRequired[str]
    """Why it has no caption."""


class Captioned(TypedDict):
    files: list[CaptionedFile]


class Answer(TypedDict):
    answer: str
    confidence: float


class Box(TypedDict):
    box: list[float]
    """Left, upper, right and lower edge in pixels."""
    confidence: float


def found_file(hit: Hit) -> FoundFile:
    item = hit.item
    fields: dict[str, Any] = {
        "path": shown(item.path), "modality": item.modality,
        "match": None if hit.match is None else round(hit.match, 3), "score": round(hit.score, 3),
        "start": _seconds(hit.start), "end": _seconds(hit.end),
        "found_by": hit.modality if hit.modality != item.modality else None,
        "caption": _cut(item.caption), "date": _date(item.date),
        "width": item.width, "height": item.height, "duration": _seconds(item.duration),
        "copies": [shown(path) for path in hit.copies[:COPIES]] or None,
        "more_copies": len(hit.copies[COPIES:]) or None,
    }  # fmt: skip
    return {key: value for key, value in fields.items() if value is not None}  # type: ignore[return-value]


def _cut(text: str | None) -> str | None:
    return text if text is None or len(text) <= CAPTION else f"{text[:CAPTION]}…"


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _date(seconds: float | None) -> str | None:
    """In local time, as the filters read it."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds).isoformat(timespec="seconds")
    except (ValueError, OSError, OverflowError):  # of a year that no calendar has
        return None


def shown(path: str) -> str:
    """A path as a model sees it: below the working folder without that, bytes that are no text as \\xNN."""
    return os.fsencode(path.removeprefix(os.getcwd() + os.sep)).decode("utf-8", "backslashreplace")
