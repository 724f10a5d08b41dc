"""Files of an index that a scan has not found: removed, moved, or, if they are many of a folder, kept once.

A disk that is not mounted leaves an empty folder in its place, or one with a few files that were written meanwhile. So
where an existing folder has lost `MANY` files or more, and more than half of its files, they are kept by the first
update that misses them and removed by the next.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from onepeace.index.items import Item
from onepeace.index.paths import places_of, whole_of
from onepeace.index.record import Recorder
from onepeace.index.scan import Scan
from onepeace.index.store import Store

MANY = 10
BLOB = "missing"
"""Name in the database of the ids of the files that the last update has kept."""


def remove_missing(recorder: Recorder, scan: Scan) -> None:
    """Remove files that a scan has not found, except in folders or shards that could not be read, and the files that
    are kept once."""
    store = recorder.store
    report = recorder.report
    items = list(store.items(recorder.condition))
    missing = missing_in(scan, items)
    report.moved = (Counter(item.hash for item in missing) & recorder.num_copies).total()
    report.copied -= report.moved
    suspects = _suspects(_not_moved(missing, recorder.num_copies), [item.path for item in items])
    kept_before = set(kept_ids(store))
    kept = {item.id: item for item in suspects if item.id not in kept_before}
    report.kept = [Path(item.path) for item in kept.values()]
    report.removed = len(missing) - report.moved - len(kept)
    kept_elsewhere = kept_before - {item.id for item in items}
    with store.transaction():
        store.remove([item.id for item in missing if item.id not in kept])
        _keep_ids(store, kept.keys() | kept_elsewhere)


def _keep_ids(store: Store, ids: Set[int]) -> None:
    if ids:
        store.keep_blob(BLOB, json.dumps(sorted(ids)).encode())
    else:
        store.drop_blob(BLOB)


def kept_ids(store: Store) -> list[int]:
    """Numbers of the missing files that the last update has kept."""
    return json.loads(store.blob(BLOB) or b"[]")


def lost_by_folders(store: Store, scan: Scan) -> list[Item]:
    """Files with vectors that a folder seems to have lost only for now, as it lacks most of its files."""
    missing = [item for item in store.items("problem IS NULL") if item.path not in scan.entries]
    kept_before = set(kept_ids(store))
    paths_in_index = {item.path for item in store.items()}
    suspects = _suspects(missing, paths_in_index | scan.entries.keys())
    return [item for item in suspects if item.id not in kept_before]


def missing_in(scan: Scan, items: Iterable[Item]) -> list[Item]:
    """Items that a scan has not found, except in folders or shards that could not be read."""
    unread = {str(problem.path) for problem in scan.problems}
    for path, entry in scan.entries.items():
        if entry.item.problem is not None:
            unread.add(path)
    missing = []
    for item in items:
        is_found = item.path in scan.entries
        if not is_found and places_of(item.path).isdisjoint(unread):
            missing.append(item)
    return missing


def _not_moved(missing: Sequence[Item], num_copies: Counter[bytes | None]) -> list[Item]:
    """Missing files with vectors whose content no new path has."""
    remaining = Counter(num_copies)
    lost = []
    for item in missing:
        if remaining[item.hash] > 0:
            remaining[item.hash] -= 1
        elif item.problem is None:
            lost.append(item)
    return lost


def _suspects(lost: Sequence[Item], paths: Iterable[str]) -> list[Item]:
    """Files below an existing folder that lost `MANY` files or more, and more than half of its files.

    Args:
        lost: files that are missing; those that exist, but are left out by now, do not count.
        paths: of all files, lost or not.
    """
    gone = []
    for item in lost:
        is_file = whole_of(item.path) is None
        if is_file and not os.path.lexists(item.path):
            gone.append(item)
    num_lost = _count_by_folder(item.path for item in gone)
    if max(num_lost.values(), default=0) < MANY:
        return []
    num_files = _count_by_folder(paths)
    emptied = set()
    for folder, number in num_lost.items():
        if number >= MANY and number > num_files[folder] / 2 and os.path.isdir(folder):
            emptied.add(folder)
    return [item for item in gone if not emptied.isdisjoint(_folders_above(item.path))]


def _count_by_folder(paths: Iterable[str]) -> Counter[str]:
    """Number of paths below each folder."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(_folders_above(path))
    return counts


def _folders_above(path: str) -> list[str]:
    return [str(folder) for folder in Path(path).parents]
