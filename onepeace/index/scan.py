"""Step "scan" of a run: roots -> entries of their files, rows and samples."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onepeace.errors import UserError, reason_at
from onepeace.files.ignore import Ignore
from onepeace.files.source import suffix
from onepeace.files.walk import Unreadable, walk
from onepeace.index.entries import Entry, entry_of_file, modalities_by_suffix
from onepeace.index.items import Item
from onepeace.index.paths import places_of
from onepeace.index.roots import Root
from onepeace.index.shards import read_shard
from onepeace.index.store import is_index
from onepeace.index.tables import read_rows


@dataclass
class Scan:
    """Result of a scan: entries by path, and problems."""

    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[Unreadable] = field(default_factory=list)
    """Folders without permission, and named files of an unknown kind."""
    others: Counter[str] = field(default_factory=Counter)
    """Numbers of files with unsupported extensions, by extension, and of links that are not followed."""


def scan(roots: Collection[Root]) -> Scan:
    """All entries of folders, files, tables and shards, each path once; roots that do not exist are skipped.

    Args:
        roots: removed ones are left out with everything below them, except where another root is at or below a
            removed one.

    A table, or a folder with a .onepeaceignore file, that cannot be read is a problem of the scan.
    """
    result = Scan()
    modalities = modalities_by_suffix()
    removed = {root.path for root in roots if root.type == "removed"}
    for root in roots:
        if root.type == "removed" or not os.path.lexists(root.path):
            continue
        left_out = removed - {root.path, *map(str, Path(root.path).parents)}
        try:
            for entry in _entries(root, left_out, modalities, result):
                _add(entry, root, left_out, result)
        except UserError as error:  # one root that cannot be read is no reason to leave out the others
            reason = reason_at(root.path, error)
            result.problems.append(Unreadable(Path(root.path), reason))
    return result


def _entries(
    root: Root,
    left_out: Collection[str],
    modalities: Mapping[str, str],
    result: Scan,
) -> Iterator[Entry]:
    if root.type == "table":
        return read_rows(Path(root.path), modalities)
    if root.type == "shard":
        return read_shard(root.path)
    return _files(root, left_out, modalities, result)


def _add(
    entry: Entry,
    root: Root,
    left_out: set[str],
    result: Scan,
) -> None:
    """Add an entry of a root to a scan, unless it is left out or another root has it; the description of a file in a
    table wins."""
    item = entry.item
    if left_out and places_of(item.path) & left_out:
        return
    is_described = root.type == "table" and (item.caption or item.metadata)
    if is_described or item.path not in result.entries:
        result.entries[item.path] = entry


def _files(
    root: Root,
    left_out: Collection[str],
    modalities: Mapping[str, str],
    result: Scan,
) -> Iterator[Entry]:
    """Entries of a named file or of the files of a folder; problems and other files are added to ``result``."""
    ignored = Ignore(Path(root.path), root.exclude)

    def skip(path: Path, is_folder: bool) -> bool:
        return (is_folder and is_index(path)) or str(path) in left_out or ignored(path, is_folder)

    files, problems = walk(
        [root.path],
        modalities,
        skip,
        follow_links=root.follow_links,
        others=result.others,
    )
    for path, known_modality in files:
        modality = known_modality or _sniffed(path)
        if modality:
            yield entry_of_file(str(path), modality)
        else:
            reason = f"not a picture, sound or text (unknown file extension {path.suffix!r})"
            result.problems.append(Unreadable(path, reason))
    for problem in problems:
        kind = modalities.get(suffix(problem.path))
        if kind and not os.path.isdir(problem.path):  # broken links and pipes are kept with the reason, as broken files
            yield Entry(Item(str(problem.path), kind, problem=problem.reason))
        else:
            result.problems.append(problem)


def _sniffed(path: Path) -> str | None:
    """Kind of a file with an unknown extension, by its first bytes."""
    from onepeace.processors import sniff  # imports torch

    return sniff(path)
