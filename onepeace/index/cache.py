"""The indexes in the user's cache folder, which keep the vectors of files that are searched without naming an index.

One index for each model has all folders, files and shards that were searched; a search brings the part that it names up
to date, and sees no other. Tables have an index for each set of paths, as their rows describe files that may also be in
folders.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.errors import UsageError, UserError
from onepeace.files.cache import cache_folder
from onepeace.index.classify import entries_to_read
from onepeace.index.filling import DEFAULT_MODEL, fill, opened, refuse_unmounted
from onepeace.index.identity import check_model, identity
from onepeace.index.index import Index
from onepeace.index.loading import Settings
from onepeace.index.lock import LOCK, Locked, writing
from onepeace.index.maintain import build, nothing_in, update
from onepeace.index.missing import missing_in
from onepeace.index.part import Part, part_of, roots_inside, sql_below
from onepeace.index.record import Recorder
from onepeace.index.report import Report
from onepeace.index.roots import Root, keep_roots, known_roots, listed, roots_of
from onepeace.index.scan import Scan, scan
from onepeace.index.store import INDEX_FORMAT, Store, is_index
from onepeace.progress import status

log = logging.getLogger(__name__)

Paths = Sequence[str | os.PathLike[str]]


class KeptIndex(NamedTuple):
    """A part of an index in the cache folder, up to date."""

    folder: Path
    part: Part | None
    """None = all of it."""
    report: Report
    is_new: bool
    """Whether these files were not in it before."""


def indexes_folder() -> Path:
    """Folder of the indexes."""
    return cache_folder() / "indexes"


def kept_index(paths: Paths, model: str | None = None, **options: Any) -> KeptIndex:
    """Bring files and folders up to date in the cache. Options: see `build`.

    If another process writes to the index at the moment, it is waited for, unless there is nothing to write.

    Raises:
        UserError: as for `build` and `update`.
    """
    from filelock import FileLock

    name = model or DEFAULT_MODEL
    paths = listed(paths)
    folder = _folder(name)
    _refuse_vanished(folder, paths)
    roots = roots_of(paths)
    has_tables = any(root.type == "table" for root in roots)
    if has_tables:
        folder = _folder_of_paths(paths, name)
    while True:
        try:
            if has_tables:
                return _update_whole(folder, paths, name, options)
            return _update_part(folder, paths, roots, name, Settings(**options))
        except Locked:
            unchanged = None if has_tables else _unchanged(folder, roots, name)
            if unchanged is not None:
                return unchanged
            status("another process brings the index of these files up to date; waiting for it ...")
            with FileLock(folder / LOCK):
                pass


def _folder(model: str) -> Path:
    """Folder of the index of all searches with a model; it may not exist."""
    base_name = os.path.basename(os.path.abspath(model))
    name = re.sub(r"[^\w.-]+", "-", base_name)[:40]
    return indexes_folder() / f"{name}-{_digest([identity(model), INDEX_FORMAT])}.index"


def _folder_of_paths(paths: Paths, model: str) -> Path:
    """Folder of the index of one set of paths and a model; it may not exist."""
    places = sorted(os.path.abspath(path) for path in paths)
    name = os.path.basename(places[0])[:40] or "root"
    return indexes_folder() / f"{name}-{_digest([places, identity(model), INDEX_FORMAT])}.index"


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=6).hexdigest()


def _refuse_vanished(folder: Path, paths: Paths) -> None:
    """UserError if one of the paths is gone and the index has files below it, which then stay there."""
    gone = [os.path.abspath(path) for path in paths if not os.path.lexists(path)]
    if not gone or not is_index(folder):
        return
    with closing(Store(folder)) as store:
        for path in gone:
            if store.count(sql_below([path])):
                refuse_unmounted(store, Root(path, "folder"), Scan())


def _update_whole(
    folder: Path,
    paths: Paths,
    model: str,
    options: dict[str, Any],
) -> KeptIndex:
    """Build or update an index that has these paths alone."""
    if is_index(folder):
        return KeptIndex(folder, None, update(folder, model, **options), is_new=False)
    return KeptIndex(folder, None, build(folder, paths, model, **options), is_new=True)


def _update_part(
    folder: Path,
    paths: Paths,
    roots: list[Root],
    model: str,
    settings: Settings,
) -> KeptIndex:
    """Build or update a part of an index.

    Raises:
        UsageError: there is nothing to embed; UserError: a folder has become empty: its disk may not be mounted.
    """
    with writing(folder, create=True) as target, opened(target, model) as store:
        roots_of_index = known_roots(store)
        scanned, part = _scan_part(roots, roots_of_index)
        is_new = not store.count(part.sql())
        if is_new and all(entry.item.problem for entry in scanned.entries.values()):
            raise UsageError(nothing_in(paths, scanned))
        unreadable = {str(problem.path) for problem in scanned.problems}
        for root in roots:
            if root.path not in unreadable:
                refuse_unmounted(store, root, scanned)
        with store.transaction():  # first, so that an interrupted search resumes
            keep_roots(store, roots, without=roots_inside(part, roots_of_index.values()))
        report = fill(store, scanned, settings, model=model, part=part)
        return KeptIndex(folder, part, report, is_new)


def _scan_part(roots: list[Root], roots_of_index: dict[str, Root]) -> tuple[Scan, Part]:
    scanned_paths = {root.path for root in roots}
    removed = []
    for root in roots_of_index.values():
        if root.type == "removed" and root.path not in scanned_paths:
            removed.append(root)
    scanned = scan([*roots, *removed])
    return scanned, part_of(roots, roots_of_index.values(), scanned.entries)


def _unchanged(folder: Path, roots: list[Root], model: str) -> KeptIndex | None:
    """The part that has these roots, if there is nothing to write; read while another process writes."""
    if not is_index(folder):
        return None
    with closing(Store(folder)) as store:
        check_model(store, model)
        scanned, part = _scan_part(roots, known_roots(store))
        report = Report(other_kinds=scanned.others)
        comparison = _Comparison(store, report, part)
        has_news = any(entries_to_read(comparison, scanned, keeps_captions=True))
        is_missing = bool(missing_in(scanned, comparison.items.values()))
        if has_news or comparison.has_rows or is_missing or not comparison.items:
            return None
        return KeptIndex(folder, part, report, is_new=False)


class _Comparison(Recorder):
    """Counts what is unchanged, and writes nothing."""

    def flush(self) -> None:
        """Leave the rows that wait."""


def kept() -> dict[Path, dict[str, Any]]:
    """The `Index.stats` of each index in the cache folder, by its folder; "roots" has the number of files of each."""
    stats_by_folder = {}
    for folder in filter(is_index, sorted(indexes_folder().glob("*.index"))):
        try:
            with Index.open(folder) as index:
                counts = {}
                for path in index.roots():
                    counts[path] = index.store.count(f"problem IS NULL AND {sql_below([path])}")
                stats_by_folder[folder] = {**index.stats(), "roots": counts}
        except UserError as error:  # of an earlier version, or damaged
            log.warning("%s; or delete it: onepeace index remove %s", error, folder)
    return stats_by_folder


def is_kept(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder lies in the cache folder."""
    return Path(folder).resolve().parent == indexes_folder().resolve()


def delete(folder: str | os.PathLike[str]) -> None:
    """Delete an index of the cache folder.

    Raises:
        UsageError: the index is not in the cache folder; UserError: another process is writing to it.
    """
    if not is_kept(folder):
        raise UsageError("not a cached index (see index list); to remove single files, name their PATHS", where=folder)
    with writing(folder):
        pass  # no other process writes to it now
    shutil.rmtree(folder)
