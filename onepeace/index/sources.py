"""Sources of an index: files of folders, rows of tables, samples of shards."""

import json
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from onepeace.errors import UsageError, UserError
from onepeace.files.ignore import Ignore
from onepeace.files.source import NamedBytes, describe, scheme, suffix
from onepeace.files.video import VIDEO_SUFFIXES
from onepeace.files.walk import Unreadable, walk
from onepeace.index.items import Item, mtime_of
from onepeace.index.store import Store, is_index
from onepeace.processors.endings import modality_by_ending

SHARDS = (".tar", ".tar.gz", ".tgz")
TABLES = (".csv", ".tsv", ".jsonl")
MEDIA = ("image", "audio")
"""Columns of a table with a picture and a sound."""
CAPTIONS = ("text", "caption", "captions")
"""Columns of a table that describe its picture or sound."""
PLACES = ("path", "file", "file_name", "filename", "url")
"""Columns of a table with the path of a picture or sound, whose extension says which."""
PARTS = {"video": ("image", "audio")}
"""Kind of file without vectors of its own -> modalities of its parts."""

_WHOLE = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, (*SHARDS, *TABLES)))}))::", re.IGNORECASE | re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Root:
    """A path that an index was built from, or that was removed from it; `update` scans the roots again."""

    path: str
    """Absolute."""
    kind: Literal["folder", "file", "table", "shard", "removed"]
    exclude: tuple[str, ...] = ()
    """Patterns as in a .gitignore file, for a folder."""
    follow_links: bool = False
    """Whether links that lead out of a folder are followed."""


class Entry(NamedTuple):
    """A file, row or sample to index."""

    item: Item
    """Item as it is known before reading; with a problem if it cannot be read."""
    value: Any = None
    """Input of the embedder: a path, for a text the string itself, for a sample a function that reads its bytes."""


@dataclass
class Scan:
    """Result of a scan: entries by path, and problems."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Unreadable] = field(default_factory=list)
    """Folders without permission, and named files of an unknown kind."""
    others: Counter[str] = field(default_factory=Counter)
    """Numbers of files with unsupported extensions, by extension, and of links that are not followed."""


def roots_of(
    paths: Iterable[str | os.PathLike[str]], exclude: Sequence[str] = (), follow_links: bool = False
) -> list[Root]:
    """Roots of an index for paths given on a command line.

    Args:
        paths: folders, files, tables (.csv, .tsv, .jsonl), webdataset shards (.tar, .tar.gz; patterns with braces and
            stars).
        exclude: patterns as in a .gitignore file, relative to each folder.

    Raises:
        UsageError: a path that does not exist; UserError: a pattern that matches no shard.
    """
    roots = []
    for each in paths:
        given = os.fspath(each)
        path = os.path.abspath(given)
        if os.path.isdir(path):
            roots.append(Root(path, "folder", tuple(exclude), follow_links))
        elif os.path.lexists(path):  # before patterns, as names may have brackets
            is_table = path.lower().endswith(TABLES)
            roots.append(Root(path, "shard" if is_shard(path) else "table" if is_table else "file"))
        elif is_shard(given) and re.search(r"[*?{\[$]", given) and not scheme(given):
            from onepeace.data.shards import expand

            roots += [Root(shard, "shard") for shard in expand(given)]
        else:
            raise UsageError(f"{given}: no such file or folder")
    return roots


def known_roots(store: Store) -> dict[str, Root]:
    """Paths that an index was built from, and those that were removed from it, each with its `Root`."""
    known = json.loads(store.blob("roots") or b"[]")
    return {about["path"]: Root(**{**about, "exclude": tuple(about["exclude"])}) for about in known}


def keep_roots(store: Store, roots: Iterable[Root]) -> None:
    """Store roots, replacing older ones of the same path; call it in a transaction."""
    known = {**known_roots(store), **{root.path: root for root in roots}}
    store.keep_blob("roots", json.dumps([asdict(root) for _, root in sorted(known.items())]).encode())


def listed(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Paths as a list; a single path becomes a list of one, as a string is not a list of its characters.

    Raises:
        UsageError: an empty path, which would be the current folder.
    """
    found = [paths] if isinstance(paths, (str, os.PathLike)) else [*paths]
    if "" in found:
        raise UsageError("a path is empty; name a file or folder, or . for the current folder")
    return found


def is_shard(path: str) -> bool:
    return path.lower().endswith(SHARDS)


def scan(roots: Collection[Root]) -> Scan:
    """All entries of folders, files, tables and shards, each path once; roots that do not exist are skipped.

    Args:
        roots: removed ones are left out with everything below them, except where another root is at or below a
            removed one.

    A table, or a folder with a .onepeaceignore file, that cannot be read is a problem of the scan.
    """
    found = Scan()
    modalities = modalities_by_suffix()
    removed = {root.path for root in roots if root.kind == "removed"}
    for root in roots:
        if root.kind == "removed" or not os.path.lexists(root.path):
            continue
        left_out = removed - {root.path, *map(str, Path(root.path).parents)}
        try:
            for entry in _entries(root, left_out, modalities, found):
                _add(entry, root, left_out, found)
        except UserError as error:  # one root that cannot be read is no reason to leave out the others
            reason = str(error).removeprefix(f"{root.path}: ")
            found.problems.append(Unreadable(Path(root.path), reason))
    return found


def _entries(root: Root, left_out: Collection[str], modalities: Mapping[str, str], found: Scan) -> Iterator[Entry]:
    if root.kind == "table":
        return _rows(Path(root.path), modalities)
    if root.kind == "shard":
        return read_shard(root.path)
    return _files(root, left_out, modalities, found)


def _add(entry: Entry, root: Root, left_out: set[str], found: Scan) -> None:
    """Add an entry of a root to a scan, unless it is left out or another root has it; the description of a file in a
    table wins."""
    item = entry.item
    is_described = root.kind == "table" and (item.caption or item.metadata)
    is_left_out = left_out and places_of(item.path) & left_out
    if (is_described or item.path not in found.entries) and not is_left_out:
        found.entries[item.path] = entry


def places_of(path: str) -> set[str]:
    """An item's path, the folders above it, and the shard or table it is part of."""
    return {path, whole_of(path) or path, *map(str, Path(path).parents)}


def whole_of(path: str) -> str | None:
    """Path of the shard or table that an item is a sample or row of; None for a file."""
    found = _WHOLE.match(path)
    return found[1] if found else None


def shard_of(path: str) -> str | None:
    """Path of the shard that an item is a sample of, else None."""
    whole = whole_of(path)
    return whole if whole and is_shard(whole) else None


def name_and_place(path: str) -> tuple[str, str]:
    """Name of an item, and the folder or shard it is in."""
    if shard := shard_of(path):
        return path[len(shard) + len("::") :], shard
    return os.path.basename(path), os.path.dirname(path)


def modalities_by_suffix() -> dict[str, str]:
    """Kind of file by extension, lower case, with the dot."""
    return {**modality_by_ending(), **dict.fromkeys(VIDEO_SUFFIXES, "video")}


def state_of(path: str) -> tuple[int, int]:
    """Size and mtime_ns of a file."""
    status = os.stat(path)
    return status.st_size, mtime_of(status)


def _files(root: Root, left_out: Collection[str], modalities: Mapping[str, str], found: Scan) -> Iterator[Entry]:
    """Entries of a named file or of the files of a folder; problems and other files are added to ``found``."""
    ignored = Ignore(Path(root.path), root.exclude)

    def skip(path: Path, is_folder: bool) -> bool:
        return (is_folder and is_index(path)) or str(path) in left_out or ignored(path, is_folder)

    files, problems = walk([root.path], modalities, skip, follow_links=root.follow_links, others=found.others)
    for path, modality in files:
        if not modality:
            from onepeace.processors import sniff  # imports torch, so only for unknown extensions

            modality = sniff(path) or ""
        if modality:
            yield _file(str(path), modality)
        else:
            reason = f"not a picture, sound or text (unknown file extension {path.suffix!r})"
            found.problems.append(Unreadable(path, reason))
    for problem in problems:  # broken links and pipes are kept with the reason, like broken files
        kind = modalities.get(suffix(problem.path))
        if kind and not os.path.isdir(problem.path):
            yield Entry(Item(str(problem.path), kind, problem=problem.reason))
        else:
            found.problems.append(problem)


def _file(path: str, modality: str) -> Entry:
    """Entry of a file; with a problem if it is none, or cannot be read."""
    try:
        status = os.stat(path)
    except OSError as error:
        return Entry(Item(path, modality, problem=error.strerror or "cannot be read"))
    except ValueError:
        return Entry(Item(path, modality, problem="no path (it has a NUL, or half of a surrogate pair)"))
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or /dev/zero would not end
        return Entry(Item(path, modality, problem="not a regular file"))
    return Entry(Item(path, modality, status.st_size, mtime_of(status)), Path(path))


def read_shard(shard: str) -> Iterator[Entry]:
    """Entries of a webdataset shard, "SHARD::KEY.ENDING": pictures, sounds, videos, and the text of samples that have
    nothing else. Samples that cannot be read are reported as the problem of an entry for the shard."""
    from onepeace.data.broken import BrokenSample
    from onepeace.data.parsing import parse_sample
    from onepeace.data.shard import UnreadableShard, open_shard

    modalities = modalities_by_suffix()
    here = _file(shard, "text").item
    try:
        opened = open_shard(shard)
    except UnreadableShard as error:
        yield Entry(replace(here, problem=str(error).removeprefix(f"{shard}: ")))
        return
    problems = [*opened.index.damages]
    for row in range(len(opened.index)):
        key = opened.index.key(row)
        raw = opened.members(row)
        captions: list[str] = []
        about: dict[str, Any] = {}
        try:
            sample = parse_sample(key, raw, opened.name, ())
            captions, about = sample.captions, {**sample.targets}
            about.pop("mask", None)  # a picture, which has an entry of its own
        except (BrokenSample, UnreadableShard) as error:
            problems.append(str(error))
        place = f"{shard}::{key}"
        kinds = {name: modalities.get(f".{name.rpartition('.')[2]}", "text") for name in raw}
        media = {name: kind for name, kind in kinds.items() if kind != "text"}
        for name, modality in media.items():
            item = replace(here, path=f"{place}.{name}", modality=modality, size=raw[name].size)
            yield _described(item, partial(_member, raw[name], item.path), captions, about)
        if not media and captions:
            yield _described(replace(here, path=f"{place}.txt"), captions[0], captions, about)
    if problems:
        first, *others = dict.fromkeys(line.removeprefix(f"{shard}: ") for line in problems)
        yield Entry(replace(here, problem=first + (f"; and {len(others)} more" if others else "")))


def _rows(table: Path, modalities: Mapping[str, str]) -> Iterator[Entry]:
    """Entries of the picture and the sound of each row, with its captions and other columns, or of its text if it has
    neither. An invalid row becomes an entry with a problem and the path "TABLE::LINE".

    Raises:
        UserError: the table cannot be read, or has no rows.
    """
    from onepeace.datasets.tables import BadRow, read_table

    row = None
    mtime_ns = 0
    for row in read_table(table):
        mtime_ns = mtime_ns or state_of(str(table))[1]
        here = Item(f"{table}::{row.line}", "text", 0, mtime_ns)
        if isinstance(row, BadRow):
            yield Entry(replace(here, problem=row.reason))
        else:
            yield from _entries_of_row(row.cells, here, table.parent, modalities)
    if row is None:
        raise UserError(f"{table}: no rows; columns are {', '.join((*MEDIA, CAPTIONS[0]))} and any others")


def _entries_of_row(row: Mapping[str, Any], here: Item, folder: Path, modalities: Mapping[str, str]) -> Iterator[Entry]:
    """Entries of a row of a table in a folder; ``here`` is the item of the row itself."""
    from onepeace.datasets.tables import some_names

    cells = {name: value for name, value in row.items() if value not in (None, "")}
    captions = []
    for name in CAPTIONS:
        captions += _texts(cells.pop(name, []))
    columns = [name for name in MEDIA if name in cells] or [name for name in PLACES if name in cells][:1]
    described = {name: value for name, value in cells.items() if name not in columns}
    if not columns and not captions:
        wanted = ", ".join((*MEDIA, CAPTIONS[0]))
        yield Entry(replace(here, problem=f"no {wanted} in this row; it has {some_names(row)}"))
    elif not columns:
        yield _described(here, captions[0], captions, described)
    for column in columns:
        value = str(cells[column])
        entry = _file_of_cell(column, value, folder, modalities)
        if entry.item.problem:  # reported for the row rather than the file
            yield Entry(replace(here, problem=f"{describe(value)}: {entry.item.problem}"))
        else:
            yield _described(*entry, captions, described)


def _file_of_cell(column: str, value: str, folder: Path, modalities: Mapping[str, str]) -> Entry:
    modality = column if column in MEDIA else modalities.get(suffix(value), "")
    path = os.path.abspath(folder / value)
    if not modality:
        problem = f"its ending says no kind of file; name the column {' or '.join(MEDIA)} in place of {column}"
        return Entry(Item(path, modality, problem=problem))
    return _file(path, modality)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def _described(item: Item, value: Any, captions: Sequence[str], about: Mapping[str, Any]) -> Entry:
    """Entry of a file or of the text ``value``, with the captions and other columns of its row or sample."""
    if isinstance(value, str):
        item = replace(item, size=len(value.encode("utf-8", "surrogatepass")))
    text = without_surrogates(json.dumps(about, ensure_ascii=False))
    metadata = json.loads(text, parse_constant=lambda _: None)  # NaN and infinities are not JSON
    caption = without_surrogates("\n".join(captions)) or None
    return Entry(replace(item, caption=caption, metadata=metadata), value)


def _member(extent: Any, path: str) -> NamedBytes:
    from onepeace.data.shard import content_of

    return NamedBytes(content_of(extent), path)


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON and file names may contain, but UTF-8 cannot encode."""
    return _SURROGATES.sub("\ufffd", text)
