"""Reads the entries of an index: the hash of their content, and what their headers say.

A file is hashed first, and decoded later if its content is new. In between, another program may write it or put another
file in its place; `Reading.is_current` says afterwards whether one did.
"""

import hashlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from onepeace.errors import UserError
from onepeace.files.metadata import Description, describe_media
from onepeace.files.regular import open_regular
from onepeace.files.source import MAX_BYTES, MAX_TEXT_BYTES
from onepeace.index.entries import Entry, value_of
from onepeace.index.items import Item, mtime_of
from onepeace.index.tokens import LONGEST_TEXT

CHUNK = 1 << 20
LIMITS = {"text": MAX_TEXT_BYTES, "image": MAX_BYTES}
"""Bytes above which a file of a kind is not decoded; sounds and videos are read piece by piece."""
TRIES = 3
"""Times that a file is read which changes meanwhile."""
RECENT_NS = 2_000_000_000
"""Age of a change below which a further one may leave the time of the file as it is (FAT stores steps of 2 s)."""
CHANGES = "changes while it is read"


class FileState(NamedTuple):
    """What differs after a file was written, or another one got its name; the inode is left out, as some network file
    systems number files anew at every look."""

    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        return cls(status.st_size, mtime_of(status), status.st_ctime_ns)


@dataclass(frozen=True)
class Reading:
    """An entry that was read."""

    entry: Entry
    """The entry as it was scanned."""
    item: Item
    """Its item with hash, date and size in pixels or seconds; or with a problem."""
    value: Any = None
    """Path of a file, else the content."""
    text: str = ""
    """Beginning of a text file, for the words that find it."""
    state: FileState | None = None
    """State of the file when it was hashed; None for content in memory, and for a problem."""
    read_ns: int = 0
    """Time of the hashing, in nanoseconds since 1970."""

    def is_current(self) -> bool:
        """Whether the file still has the content that was hashed, so that whoever decoded it meanwhile had the same."""
        if self.state is None:
            return True
        try:
            if FileState.of(os.stat(self.value)) != self.state:
                return False
            changed_ns = max(self.state.mtime_ns, self.state.ctime_ns)
            return self.read_ns - changed_ns > RECENT_NS or hash_of(self.value) == self.item.hash
        except OSError:
            return False


def read_entry(entry: Entry) -> Reading:
    """Read an entry: adds hash, date and size in pixels or seconds to its item, or a problem."""
    try:
        if isinstance(entry.value, Path):
            return _read_file(entry, entry.value)
        value = value_of(entry)
        content = value
        if isinstance(value, str):
            content = value.encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(content, digest_size=16).digest()
        item = replace(entry.item, hash=digest)
        return Reading(entry, _described(item, Description()), value)
    except (OSError, UserError) as error:
        return failed(entry, getattr(error, "strerror", None) or str(error))


def failed(entry: Entry, reason: str) -> Reading:
    """The reading of an entry that cannot be read."""
    return Reading(entry, replace(entry.item, problem=reason))


def hash_of(path: Path) -> bytes:
    """blake2b of a file's content, 16 bytes."""
    with open(path, "rb", opener=open_regular) as file:
        return _hash(file)


def _hash(file: BinaryIO) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.digest()


def _read_file(entry: Entry, path: Path) -> Reading:
    """Hash a file; again, if it is written meanwhile. A file that no decoder would read is not hashed either."""
    limit = LIMITS.get(entry.item.modality)
    for _ in range(TRIES):
        with open(path, "rb", opener=open_regular) as file:
            state = FileState.of(os.fstat(file.fileno()))
            if limit is not None and state.size > limit:
                return failed(entry, f"{state.size} bytes are above the limit of {limit}")
            read_ns = time.time_ns()
            digest = _hash(file)
            if FileState.of(os.fstat(file.fileno())) != state:
                continue
        item = replace(entry.item, size=state.size, mtime_ns=state.mtime_ns, hash=digest)
        return Reading(
            entry=entry,
            item=_described(item, describe_media(path, item.modality)),
            value=path,
            text=_beginning(path) if item.modality == "text" else "",
            state=state,
            read_ns=read_ns,
        )
    return failed(entry, CHANGES)


def _beginning(path: Path) -> str:
    """First characters of a text file; a file in another encoding than UTF-8 is refused when it is embedded."""
    with open(path, encoding="utf-8-sig", errors="replace", opener=open_regular) as file:
        return file.read(LONGEST_TEXT)


def _described(item: Item, description: Description) -> Item:
    """The item with what its header says; the date of a file that names none is that of its last change."""
    date = description.date
    if date is None and item.mtime_ns:
        date = item.mtime_ns / 1e9
    return replace(
        item,
        date=date,
        width=description.width,
        height=description.height,
        duration=description.duration,
        tags=description.tags,
    )
