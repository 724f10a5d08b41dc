"""Steps "scan" and "classify" of a run: what the roots have now, which of it must be read, and which files are missing.

A disk that is not mounted leaves an empty folder in its place, or one with a few files that were written meanwhile. So
where an existing folder has lost `MANY` files or more, and more than half of its files, they are kept by the first
update that misses them and removed by the next. A file that cannot be read is not missing.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

from onepeace.errors import UserError, reason_at
from onepeace.files.source import suffix
from onepeace.files.walk import Ignore, Unreadable, walk
from onepeace.index.database import is_index
from onepeace.index.items import Item, places_of, whole_of
from onepeace.index.record import Recorder, may_work_now
from onepeace.index.sources import PARTS, Entry, Root, entry_of_file, modalities_by_suffix, read_rows, read_shard

state_of_item = attrgetter("size", "mtime_ns", "kind")
"""What of an item differs when its file has changed."""
MANY = 10
MISSING = "missing"
"""Name in the database of the ids of the files that the last update has kept."""


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
    for root in sorted(roots, key=attrgetter("path")):  # whichever describe a file last, in this run or a later one
        if root.type == "removed" or not os.path.lexists(root.path):
            continue
        left_out = removed - {root.path, *map(str, Path(root.path).parents)}
        try:
            if root.type == "table":
                entries = read_rows(Path(root.path), modalities)
            elif root.type == "shard":
                entries = read_shard(root.path)
            else:
                entries = _files(root, left_out, modalities, result)
            for entry in entries:
                item = entry.item
                if left_out and places_of(item.path) & left_out:
                    continue
                # Another root may have it too; the description of a file in a table wins.
                is_described = root.type == "table" and (item.caption or item.metadata)
                if is_described or item.path not in result.entries:
                    result.entries[item.path] = entry
        except UserError as error:  # one root that cannot be read is no reason to leave out the others
            reason = reason_at(root.path, error)
            result.problems.append(Unreadable(Path(root.path), reason))
    return result


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
        modality: str | None = known_modality
        if not modality:
            from onepeace.processors import sniff  # imports torch

            modality = sniff(path)
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


def entries_to_read(recorder: Recorder, scan: Scan, *, keeps_captions: bool) -> Iterator[Entry]:
    """Yield new entries, those whose size, time or kind has changed, and those that a retry may mend. The others are
    recorded.

    Args:
        keeps_captions: whether a file keeps its caption and other columns if the scan has none for it.
    """
    modalities = recorder.store.modalities
    for entry in scan.entries.values():
        item = entry.item
        previous = recorder.items.get(item.path)
        if previous is not None and keeps_captions:
            item = replace(
                item,
                caption=item.caption or previous.caption,
                metadata=item.metadata or previous.metadata,
            )
        if item.problem is not None:
            recorder.record_problem(item, item.problem)
        elif not modalities_of(item, modalities):
            recorder.report.left_out[item.kind] += 1
        elif previous is not None and state_of_item(previous) == state_of_item(item) and not may_work_now(previous):
            recorder.record_unchanged(previous, item)
        elif known := recorder.same_file(item):
            described = replace(known.item, id=0, caption=item.caption, metadata=item.metadata)
            recorder.record_copy(described, known)
        else:
            yield Entry(item, entry.value)


def modalities_of(item: Item, modalities: tuple[str, ...]) -> list[str]:
    """Modalities of the vectors that a model makes of a file; a video has those of its parts."""
    parts = PARTS.get(item.kind, (item.kind,))
    return [modality for modality in parts if modality in modalities]


def remove_missing(recorder: Recorder, scan: Scan) -> None:
    """Remove files that a scan has not found, except in folders or shards that could not be read, and the files that
    are kept once."""
    store = recorder.store
    report = recorder.report
    items = list(store.items())
    missing = _missing(scan, items)
    dead_links = _dead_links(missing)
    report.problems += [Unreadable(Path(link), "a link to nothing; its files stay in the index") for link in dead_links]
    missing = [item for item in missing if places_of(item.path).isdisjoint(dead_links)]
    moved = Counter(item.hash for item in missing) & recorder.num_copies
    report.moved = moved.total()
    report.copied -= report.moved
    kept_before = json.loads(store.blob(MISSING) or b"[]")
    kept = {item.id: item for item in _suspects(missing, recorder.num_copies, items) if item.id not in kept_before}
    report.kept = [Path(item.path) for item in kept.values()]
    report.removed = len(missing) - report.moved - len(kept)
    with store.transaction():
        store.remove([item.id for item in missing if item.id not in kept])
        if kept or kept_before:
            store.keep_blob(MISSING, json.dumps(sorted(kept)).encode())


def _missing(scan: Scan, items: Iterable[Item]) -> list[Item]:
    """Items that a scan has not found, except in folders or shards that could not be read."""
    unread = {str(problem.path) for problem in scan.problems}
    for path, entry in scan.entries.items():
        if entry.item.problem is not None:
            unread |= {path, entry.file or path}
    missing = []
    for item in items:
        is_found = item.path in scan.entries
        if not is_found and places_of(item.path).isdisjoint(unread):
            missing.append(item)
    return missing


def _dead_links(missing: Iterable[Item]) -> list[str]:
    """Links to nothing above missing files: what they lead to may be on a disk that is not mounted."""
    folders = {str(folder) for item in missing for folder in Path(item.path).parents}
    return sorted(folder for folder in folders if os.path.islink(folder) and not os.path.exists(folder))


def _suspects(missing: Sequence[Item], copied: Collection[bytes | None], items: Sequence[Item]) -> list[Item]:
    """Files below an existing folder that lost `MANY` files or more, and more than half of its files.

    Args:
        missing: files of which those count that had vectors and are gone, and not those that are left out by now.
        copied: hashes of content that has vectors at a new path.
        items: all files, also missing ones.
    """
    gone = []
    for item in missing:
        had_vectors = item.problem is None and whole_of(item.path) is None and item.hash not in copied
        if had_vectors and not os.path.lexists(item.path):
            gone.append(item)
    if len(gone) < MANY:
        return []
    num_files = _count_by_folder(items)
    emptied = set()
    for folder, number in _count_by_folder(gone).items():
        if number >= MANY and number > num_files[folder] / 2 and folder.is_dir():
            emptied.add(folder)
    return [item for item in gone if not emptied.isdisjoint(Path(item.path).parents)]


def _count_by_folder(items: Iterable[Item]) -> Counter[Path]:
    """Number of files below each folder."""
    return Counter(folder for item in items for folder in Path(item.path).parents)
