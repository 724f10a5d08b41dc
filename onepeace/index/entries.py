"""Entries of a scan: what is known of a file, row or sample before it is read."""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.files.video import VIDEO_SUFFIXES
from onepeace.index.items import Item, mtime_of
from onepeace.index.paths import without_surrogates
from onepeace.processors.by_ending import modality_by_ending

PARTS = {"video": ("image", "audio")}
"""Kind of file without vectors of its own -> modalities of its parts."""


class Entry(NamedTuple):
    """A file, row or sample to index."""

    item: Item
    """Item as it is known before reading; with a problem if it cannot be read."""
    value: Any = None
    """Input of the embedder: a path, for a text the string itself, for a sample a function that reads its bytes."""


def value_of(entry: Entry) -> Any:
    """Input of the embedder; what a function reads is read now."""
    return entry.value() if callable(entry.value) else entry.value


def modalities_by_suffix() -> dict[str, str]:
    """Kind of file by extension, lower case, with the dot."""
    return {**modality_by_ending(), **dict.fromkeys(VIDEO_SUFFIXES, "video")}


def state_of(path: str) -> tuple[int, int]:
    """Size and mtime_ns of a file."""
    status = os.stat(path)
    return status.st_size, mtime_of(status)


def entry_of_file(path: str, modality: str) -> Entry:
    """Entry of a file; with a problem if it is not a regular file, or cannot be read."""
    try:
        status = os.stat(path)
    except OSError as error:
        return Entry(Item(path, modality, problem=error.strerror or "cannot be read"))
    except ValueError:
        return Entry(Item(path, modality, problem="no path (it has a NUL, or half of a surrogate pair)"))
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or /dev/zero would not end
        return Entry(Item(path, modality, problem="not a regular file"))
    return Entry(Item(path, modality, status.st_size, mtime_of(status)), Path(path))


def described(
    item: Item,
    value: Any,
    captions: Sequence[str],
    columns: Mapping[str, Any],
) -> Entry:
    """Entry of a file or of the text ``value``, with the captions and other columns of its row or sample."""
    if isinstance(value, str):
        item = replace(item, size=len(value.encode("utf-8", "surrogatepass")))
    text = without_surrogates(json.dumps(columns, ensure_ascii=False))
    metadata = json.loads(text, parse_constant=lambda _: None)  # NaN and infinities are not JSON
    caption = without_surrogates("\n".join(captions)) or None
    return Entry(replace(item, caption=caption, metadata=metadata), value)
