"""Files of an index and their paths, and the parts of files that vectors stand for."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

LATEST = (1 << 63) - 1


@dataclass(frozen=True)
class Item:
    """A file of an index, as it was when it was embedded."""

    path: str
    """Absolute; "SHARD::KEY.ENDING" for a sample of a shard, "TABLE::LINE" for a row's text. Bytes of a name that are
    not UTF-8 are surrogates, as everywhere in Python."""
    kind: str
    """image, audio, text, video, or a modality that was registered."""
    size: int = 0
    """Bytes."""
    mtime_ns: int = 0
    """Of a sample or row, that of the shard or table."""
    offset: int | None = None
    """Place of the first byte of a sample in the uncompressed shard."""
    hash: bytes | None = None
    """blake2b of the content, 16 bytes."""
    date: float | None = None
    """Seconds since 1970: when it was taken, by the file's metadata, else when it was modified."""
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    """Seconds."""
    caption: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    """Further columns of a table, or fields of a sample."""
    tags: dict[str, Any] = field(default_factory=dict)
    """What the file itself says, such as camera, keywords or artist, by the names of `onepeace.files.metadata`."""
    problem: str | None = None
    """Reason if the file could not be embedded."""
    note: str | None = None
    """Note about an embedded file, such as a video that ends early."""
    id: int = 0
    """Number in the index, from 1; 0 if it is not in an index."""

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> "Item":
        """Build an item from an id and the values of NAMES."""
        values = dict(zip(("id", *NAMES), row, strict=True))
        values["path"] = os.fsdecode(values["path"])
        for name in JSON_COLUMNS:
            values[name] = json.loads(values[name])
        return cls(**values)

    def to_row(self) -> list[Any]:
        """The values of NAMES, as SQLite stores them."""
        values = {**vars(self), "path": os.fsencode(self.path)}
        for name in JSON_COLUMNS:
            values[name] = json.dumps(values[name], sort_keys=True)
        return [values[name] for name in NAMES]

    def to_dict(self) -> dict[str, Any]:
        """Fields for JSON, without id, mtime_ns, hash, problem and note."""
        names = ("caption", "date", "width", "height", "duration", "size", "metadata", "tags")
        fields_by_name = {name: getattr(self, name) for name in names}
        return {"path": as_text(self.path), "kind": self.kind, **fields_by_name}


def mtime_of(status: os.stat_result) -> int:
    """Time of the last change of a file in nanoseconds since 1970, as far as SQLite stores it: to the year 2262."""
    return max(-LATEST - 1, min(status.st_mtime_ns, LATEST))


def as_text(path: str | Path) -> str:
    """A path for JSON: bytes of a name that are not UTF-8 are replaced."""
    return os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


NAMES = tuple(column.name for column in fields(Item) if column.name != "id")
"""Columns of a file's row, without its id."""
JSON_COLUMNS = ("metadata", "tags")
"""Those of them that are stored as JSON."""


@dataclass(frozen=True)
class Span:
    """Part of a file that a vector represents: all of it, or the seconds from start to end."""

    modality: str
    start: float | None = None
    end: float | None = None


class Words(NamedTuple):
    """Texts by whose words a file is found; see words.py."""

    name: str = ""
    """Names of the file, without its ending, and of the folders below the indexed one."""
    ending: str = ""
    """Ending of the file's name, without the dot."""
    about: str = ""
    """Caption, cells of its row of a table, and tags."""
    text: str = ""
    """Content of a text file."""


SHARDS = (".tar", ".tar.gz", ".tgz")
TABLES = (".csv", ".tsv", ".jsonl")
SEPARATOR = "::"
ANY_ENDS = (os.sep, SEPARATOR)
"""What follows the path of a folder, or of a table or shard, in the path of a file inside it."""
IN_LIST = "IN (SELECT value FROM json_each(?))"
"""Condition for any number of values, given as one list in JSON."""
_ENDINGS = "|".join(map(re.escape, (*SHARDS, *TABLES)))
_CONTAINER = re.compile(rf"(.+?(?:{_ENDINGS})){SEPARATOR}", re.IGNORECASE | re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")


def is_shard(path: str) -> bool:
    return path.lower().endswith(SHARDS)


def is_table(path: str) -> bool:
    return path.lower().endswith(TABLES)


def places_of(path: str) -> set[str]:
    """An item's path, the folders above it, and the shard or table it is part of."""
    return {path, whole_of(path) or path, *map(str, Path(path).parents)}


def whole_of(path: str) -> str | None:
    """Path of the shard or table that an item is a sample or row of; None for a file."""
    match = _CONTAINER.match(path)
    return match[1] if match else None


def shard_of(path: str) -> str | None:
    """Path of the shard that an item is a sample of, else None."""
    whole = whole_of(path)
    return whole if whole and is_shard(whole) else None


def name_and_place(path: str) -> tuple[str, str]:
    """Name of an item, and the folder or shard it is in."""
    shard = shard_of(path)
    if shard:
        return path[len(shard) + len(SEPARATOR) :], shard
    return os.path.basename(path), os.path.dirname(path)


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON and file names may contain, but UTF-8 cannot encode."""
    return _SURROGATES.sub("\ufffd", text)


def sql_below(paths: Iterable[str]) -> str:
    """SQL condition for files at these paths, and in folders, tables and shards at these paths."""
    conditions = []
    for path in paths:
        conditions.append(f"path = X'{os.fsencode(path).hex()}'")
        for end in ANY_ENDS:
            first = os.fsencode(path.removesuffix(end) + end)
            after_last = first[:-1] + bytes([first[-1] + 1])
            conditions.append(f"path >= X'{first.hex()}' AND path < X'{after_last.hex()}'")
    return _any_of(conditions)


def _any_of(conditions: Sequence[str]) -> str:
    """One condition of several; halved, as SQLite limits how deep a condition is nested."""
    if len(conditions) == 1:
        return f"({conditions[0]})"
    middle = len(conditions) // 2
    return f"({_any_of(conditions[:middle])} OR {_any_of(conditions[middle:])})"
