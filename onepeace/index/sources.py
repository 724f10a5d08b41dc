"""What goes into an index: the files of folders, the rows of a table, the samples of shards."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onepeace.errors import UsageError, UserError
from onepeace.files.ignore import Ignore
from onepeace.files.source import scheme
from onepeace.files.walk import Unreadable, walk
from onepeace.index.store import MODALITIES, Item

SHARDS = (".tar", ".tar.gz", ".tgz")
TABLES = (".csv", ".tsv", ".jsonl")
CAPTIONS = ("text", "caption", "captions")
"""Columns of a table that describe its picture or sound."""


@dataclass(frozen=True)
class Entry:
    """Something that is to be in the index."""

    item: Item
    """As far as it is known before it is read."""
    value: Any
    """What the embedder takes: a path, bytes, an address, or for a text the string itself."""


@dataclass
class Scan:
    """What was found, and what could not be read on the way."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[Unreadable] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    """Absolute."""

    def extend(self, other: "Scan") -> None:
        """Take in what another scan found; folders may lie in one another."""
        present = {entry.item.path for entry in self.entries}
        self.entries += [entry for entry in other.entries if entry.item.path not in present]
        self.problems += other.problems
        self.folders += other.folders


def is_shards(path: str) -> bool:
    return path.endswith(SHARDS)


def is_table(path: str) -> bool:
    return path.endswith(TABLES)


def scan(paths: Sequence[str], exclude: Sequence[str] = (), suffixes: dict[str, str] | None = None) -> Scan:
    """Everything that the paths mean, each once; samples of shards are not among them, they come from `read_shards`.

    Args:
        paths: files and folders, tables (.csv, .tsv, .jsonl).
        exclude: patterns as in a .gitignore file, from each folder.
        suffixes: modality by file ending; by default those of the processors.

    Raises:
        UsageError: a path that does not exist; UserError: a table or .onepeaceignore file that cannot be read.
    """
    found = Scan()
    seen: set[str] = set()
    known = suffixes if suffixes is not None else _suffixes()
    for given in paths:
        if is_table(given):
            entries: Iterator[Entry] = _rows(Path(given), found.problems)
        else:
            files, problems = walk([given], known, Ignore(Path(given), exclude) if os.path.isdir(given) else None)
            found.problems += problems
            if os.path.isdir(given):
                found.folders.append(Path(os.path.abspath(given)))
            entries = (entry for path, modality in files if (entry := _file(path, modality, found.problems)))
        for entry in entries:
            if entry.item.path not in seen:
                seen.add(entry.item.path)
                found.entries.append(entry)
    return found


def read_shards(pattern: str, problems: list[Unreadable]) -> Iterator[Entry]:
    """The pictures, sounds and texts of webdataset shards, "SHARD::KEY.ENDING"; a text is a member of its own only
    where the sample has neither picture nor sound."""
    from onepeace.data.shards import expand, raw_samples, usable_sample

    known = _suffixes()
    for shard in expand(pattern):
        broken: list[str] = []
        mtime_ns = 0 if scheme(shard) else os.stat(shard).st_mtime_ns
        for raw in raw_samples(shard, broken):
            media = {
                name: data
                for name, data in raw.items()
                if known.get(f".{name.rpartition('.')[2]}") in ("image", "audio")
            }
            sample = usable_sample(raw, shard, (), broken)
            about: dict[str, Any] = {} if sample is None or sample.label is None else {"label": sample.label}
            captions = [] if sample is None else sample.captions
            key = raw["__key__"]
            for name, data in media.items():
                modality = known[f".{name.rpartition('.')[2]}"]
                item = Item(f"{shard}::{key}.{name}", modality, len(data), mtime_ns, metadata=about)
                yield Entry(_captioned(item, captions), data)
            if not media and captions:
                text = captions[0]
                item = Item(f"{shard}::{key}.txt", "text", len(text.encode()), mtime_ns, metadata=about)
                yield Entry(_captioned(item, captions), text)
        problems += [Unreadable(Path(shard), line) for line in broken]


def _suffixes() -> dict[str, str]:
    from onepeace.processors import PROCESSORS

    return {suffix: key for key, processor in PROCESSORS.items() for suffix in processor.suffixes}


def _sniff(path: Path) -> str:
    from onepeace.processors import sniff

    return sniff(path) or ""


def _file(path: Path, modality: str, problems: list[Unreadable]) -> Entry | None:
    modality = modality or _sniff(path)
    if not modality:
        problems.append(Unreadable(path, f"not a picture, sound or text (unknown ending {path.suffix!r})"))
        return None
    absolute = os.path.abspath(path)
    try:
        status = os.stat(absolute)
    except OSError as error:
        problems.append(Unreadable(path, error.strerror or "cannot be read"))
        return None
    return Entry(Item(absolute, modality, status.st_size, status.st_mtime_ns), Path(absolute))


def _rows(table: Path, problems: list[Unreadable]) -> Iterator[Entry]:
    """The picture and the sound of each row, described by its captions and its other columns; of a row that has
    neither, the text."""
    from onepeace.datasets.tables import BadRow, read_table

    if not table.is_file():
        raise UsageError(f"{table}: no such file")
    modalities = [key for key in MODALITIES if key != "text"]
    mtime_ns = table.stat().st_mtime_ns
    usable = False
    for row in read_table(table):
        where = Path(f"{table}:{row.line}")
        if isinstance(row, BadRow):
            problems.append(Unreadable(where, row.reason))
            continue
        cells = {name: value for name, value in row.cells.items() if value not in (None, "")}
        captions = [text for name in CAPTIONS for text in _texts(cells.pop(name, []))]
        media = {key: str(cells.pop(key)) for key in modalities if key in cells}
        if not media and not captions:
            problems.append(Unreadable(where, f"no {', '.join([*modalities, CAPTIONS[0]])} in this row"))
            continue
        usable = True
        for key, value in media.items():
            if scheme(value):
                yield Entry(_captioned(Item(value, key, 0, 0, metadata=cells), captions), value)
            elif entry := _file(table.parent / value, key, problems):
                yield Entry(_captioned(replace(entry.item, metadata=cells), captions), entry.value)
        if not media:
            item = Item(
                f"{os.path.abspath(table)}::{row.line}", "text", len(captions[0].encode()), mtime_ns, metadata=cells
            )
            yield Entry(_captioned(item, captions), captions[0])
    if not usable and not problems:
        raise UserError(f"{table}: no rows; columns are {', '.join([*modalities, CAPTIONS[0]])} and any others")


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def _captioned(item: Item, captions: Sequence[str]) -> Item:
    return replace(item, caption="\n".join(captions) or None)
