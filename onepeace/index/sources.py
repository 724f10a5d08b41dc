"""What an index is made of: its roots (folders, files, tables, shards), and the entries of tables and shards."""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from onepeace.errors import UsageError, UserError, reason_at
from onepeace.files.source import NamedBytes, describe, scheme
from onepeace.files.video import VIDEO_SUFFIXES
from onepeace.index.database import Store
from onepeace.index.items import Item, is_shard, is_table, mtime_of, without_surrogates
from onepeace.processors.endings import modality_by_ending

ROOTS = "roots"
"""Name of the roots in the database."""
PARTS = {"video": ("image", "audio")}
"""Kind of file without vectors of its own -> modalities of its parts."""
WANTED = "image, audio, text"
"""Columns of which a row needs one, for messages."""


@dataclass(frozen=True)
class Root:
    """A path that an index was built from, or that was removed from it; `update` scans the roots again."""

    path: str
    """Absolute."""
    type: Literal["folder", "file", "table", "shard", "removed"]
    exclude: tuple[str, ...] = ()
    """Patterns as in a .gitignore file, for a folder."""
    follow_links: bool = False
    """Whether links that lead out of a folder are followed."""


def roots_of(
    paths: Iterable[str | os.PathLike[str]],
    exclude: Sequence[str] = (),
    follow_links: bool = False,
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
    for given_path in paths:
        path = os.fspath(given_path)
        absolute = os.path.abspath(path)
        if os.path.isdir(absolute):
            roots.append(Root(absolute, "folder", tuple(exclude), follow_links))
        elif os.path.lexists(absolute):  # before patterns, as names may have brackets
            roots.append(Root(absolute, _type_of_file(absolute)))
        elif is_shard(path) and re.search(r"[*?{\[$]", path) and not scheme(path):
            from onepeace.data.source import expand

            roots += [Root(shard, "shard") for shard in expand(path)]
        else:
            raise UsageError("no such file or folder", where=path)
    return roots


def _type_of_file(path: str) -> Literal["file", "table", "shard"]:
    if is_shard(path):
        return "shard"
    if is_table(path):
        return "table"
    return "file"


def known_roots(store: Store) -> dict[str, Root]:
    """Paths that an index was built from, and those that were removed from it, each with its `Root`."""
    roots = [Root(**fields) for fields in json.loads(store.blob(ROOTS) or b"[]")]
    return {root.path: replace(root, exclude=tuple(root.exclude)) for root in roots}


def keep_roots(store: Store, roots: Iterable[Root]) -> None:
    """Store roots, replacing older ones of the same path; call it in a transaction."""
    by_path = known_roots(store)
    by_path |= {root.path: root for root in roots}
    entries = [asdict(by_path[path]) for path in sorted(by_path)]
    store.keep_blob(ROOTS, json.dumps(entries).encode())


def listed(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str | os.PathLike[str]]:
    """Paths as a list; a single path becomes a list of one, as a string is not a list of its characters.

    Raises:
        UsageError: an empty path, which would be the current folder.
    """
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if "" in several:
        raise UsageError("a path is empty; name a file or folder, or . for the current folder")
    return several


class Entry(NamedTuple):
    """A file, row or sample to index."""

    item: Item
    """Item as it is known before reading; with a problem if it cannot be read."""
    value: Any = None
    """Input of the embedder: a path, for a text the string itself, for a sample a function that reads its bytes."""
    file: str | None = None
    """File that a row of a table names, if that cannot be read."""


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


def read_rows(table: Path, modalities: Mapping[str, str]) -> Iterator[Entry]:
    """Entries of the picture and the sound of each row, with its captions and other columns, or of its text if it has
    neither. An invalid row becomes an entry with a problem and the path "TABLE::LINE".

    Args:
        modalities: kind of file by extension.

    Raises:
        UserError: the table cannot be read, or has no rows.
    """
    from onepeace.datasets.tables import BadRow, read_table

    row = None
    mtime_ns = 0
    for row in read_table(table):
        mtime_ns = mtime_ns or state_of(str(table))[1]
        item = Item(f"{table}::{row.line}", "text", 0, mtime_ns)
        if isinstance(row, BadRow):
            yield Entry(replace(item, problem=row.reason))
        else:
            yield from _entries_of_row(row.cells, item, table.parent, modalities)
    if row is None:
        raise UserError(f"no rows; columns are {WANTED} and any others", where=table)


def _entries_of_row(
    row: Mapping[str, Any],
    row_item: Item,
    folder: Path,
    modalities: Mapping[str, str],
) -> Iterator[Entry]:
    """Entries of a row of a table in a folder; ``row_item`` is the item of the row itself."""
    from onepeace.datasets.tables import CAPTIONS, content_of, some_names

    names = {"image": ("image",), "audio": ("audio",), "text": CAPTIONS}
    try:
        content = content_of(row, names, modalities)
    except UserError as error:
        yield Entry(replace(row_item, problem=str(error)))
        return
    captions: list[str] = []
    for cell in content.captions:
        captions += _texts(cell.value)
    if not content.files and not captions:
        yield Entry(replace(row_item, problem=f"no {WANTED} in this row; it has {some_names(row)}"))
    elif not content.files:
        yield described(row_item, captions[0], captions, content.others)
    for modality, cell in content.files.items():
        entry = entry_of_file(os.path.abspath(folder / str(cell.value)), modality)
        if entry.item.problem:  # reported for the row rather than the file
            yield Entry(
                replace(row_item, problem=f"{describe(str(cell.value))}: {entry.item.problem}"), file=entry.item.path
            )
        else:
            yield described(entry.item, entry.value, captions, content.others)


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [text.strip() for text in values if isinstance(text, str) and text.strip()]


def read_shard(shard: str) -> Iterator[Entry]:
    """Entries of a webdataset shard, "SHARD::KEY.ENDING": pictures, sounds, videos, and the text of samples that have
    nothing else. Samples that cannot be read are reported as the problem of an entry for the shard."""

    from onepeace.data.sample import BrokenSample, parse_sample
    from onepeace.data.shard import UnreadableShard, open_shard

    shard_item = entry_of_file(shard, "text").item
    try:
        opened = open_shard(shard)
    except UnreadableShard as error:
        yield _problem_of(shard_item, [reason_at(shard_item.path, error)])
        return
    problems: list[str] = []
    for row in range(len(opened)):
        key = opened.keys[row]
        members = opened.members(row)
        captions: list[str] = []
        columns: dict[str, Any] = {}
        try:
            sample = parse_sample(key, members, opened.name, ())
            captions = sample.captions
            columns = {**sample.targets}
            columns.pop("mask", None)  # a picture, which has an entry of its own
        except (BrokenSample, UnreadableShard) as error:
            problems.append(reason_at(shard_item.path, error))
        yield from _entries_of_sample(replace(shard_item, path=f"{shard}::{key}"), members, captions, columns)
    if problems:
        yield _problem_of(shard_item, problems)


def _entries_of_sample(
    sample_item: Item,
    members: Mapping[str, Any],
    captions: Sequence[str],
    columns: Mapping[str, Any],
) -> Iterator[Entry]:
    """Entries of a sample with the path "SHARD::KEY".

    Args:
        members: place of each file of the sample, by its ending.
        captions: its texts.
        columns: its other fields.
    """
    modalities = modalities_by_suffix()
    has_media = False
    for ending, extent in members.items():
        modality = modalities.get(f".{ending.rpartition('.')[2]}", "text")
        if modality == "text":
            continue
        has_media = True
        path = f"{sample_item.path}.{ending}"
        item = replace(sample_item, path=path, kind=modality, size=extent.size, offset=extent.offset)
        yield described(item, partial(_content, extent, path), captions, columns)
    if not has_media and captions:
        yield described(replace(sample_item, path=f"{sample_item.path}.txt"), captions[0], captions, columns)


def _problem_of(shard_item: Item, problems: Sequence[str]) -> Entry:
    """Entry of a shard with what cannot be read in it."""
    first, *further = dict.fromkeys(line.removeprefix(f"{shard_item.path}: ") for line in problems)
    if further:
        first = f"{first}; and {len(further)} more"
    return Entry(replace(shard_item, problem=first))


def _content(extent: Any, path: str) -> NamedBytes:
    from onepeace.data.shard import content_of

    return NamedBytes(content_of(extent), path)
