"""The indexes in the user's cache folder, which keep the vectors of files that are searched without naming an index.

There is one for each set of paths and model, so an answer depends on nothing else. It takes the vectors of files that
another one of the same model has from there, by path, size and time, or by content; so nothing is embedded twice.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import Locked, cache_folder, locked
from onepeace.index.database import DATABASE, INDEX_FORMAT, Damaged, Store, is_index, sql_below, writing
from onepeace.index.index import Index
from onepeace.index.maintain import DEFAULT_MODEL, build, update
from onepeace.index.record import Report
from onepeace.index.sources import listed
from onepeace.index.verify import identity
from onepeace.progress import status

log = logging.getLogger(__name__)

Paths = Sequence[str | os.PathLike[str]]
SMALL = 1000
"""Number of files below which an index is soon built again."""
MOST_SMALL = 20
"""Number of small indexes that are kept, those that were used last."""


class KeptIndex(NamedTuple):
    """An index in the cache folder, up to date."""

    folder: Path
    report: Report
    is_new: bool
    """Whether these paths were not searched before."""


def indexes_folder() -> Path:
    """Folder of the indexes."""
    return cache_folder() / "indexes"


def kept_index(paths: Paths, model: str | None = None, **options: Any) -> KeptIndex:
    """Build the index of some files and folders in the cache, or bring it up to date. Options: see `build`.

    If another process writes to it at the moment, that is waited for.

    Raises:
        UserError: as for `build` and `update`.
    """
    paths = listed(paths)
    name = model or DEFAULT_MODEL
    folder = _folder_of(paths, name)
    while True:
        try:
            is_new = not is_index(folder)
            if is_new:
                _forget_small()
                report = build(folder, paths, name, reuse=_folders(), **options)
            else:
                report = update(folder, name, reuse=_folders(), **options)
            os.utime(folder / DATABASE)
            return KeptIndex(folder, report, is_new)
        except Locked:
            status("another process brings the index of these files up to date; waiting for it ...")
            with locked(folder, patience=-1, again=False):
                pass


def _folder_of(paths: Paths, model: str) -> Path:
    """Folder of the index of a set of paths and a model; it may not exist."""
    places = sorted({os.path.abspath(path) for path in paths})
    content = json.dumps([places, identity(model), INDEX_FORMAT])
    digest = hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
    name = os.path.basename(places[0])[:40] or "root"
    return indexes_folder() / f"{name}-{digest}.index"


def _forget_small() -> None:
    """Delete the small indexes that were used least recently, as a new one comes, and those that are damaged or of an
    earlier version."""
    last_used = {}
    for folder in _folders():
        with suppress(UserError, FileNotFoundError):  # another process is writing to it, or has deleted it
            try:
                with closing(Store(folder)) as store:
                    if store.count() < SMALL:
                        last_used[folder] = os.path.getmtime(folder / DATABASE)
            except Damaged:
                delete(folder)
    for folder in sorted(last_used, key=last_used.__getitem__)[: -MOST_SMALL + 1]:
        with suppress(UserError, FileNotFoundError):
            if os.path.getmtime(folder / DATABASE) == last_used[folder]:  # else it was searched meanwhile
                delete(folder)


def _folders() -> list[Path]:
    """Folders of all indexes in the cache folder."""
    return [folder for folder in sorted(indexes_folder().glob("*.index")) if is_index(folder)]


def kept() -> dict[Path, dict[str, Any]]:
    """The `Index.stats` of each index in the cache folder, by its folder; "roots" has the number of files of each."""
    stats_by_folder = {}
    for folder in _folders():
        try:
            with Index.open(folder) as index, index.reading() as state:
                counts = {}
                for path in state.roots:
                    counts[path] = state.store.count(f"problem IS NULL AND {sql_below([path])}")
                stats_by_folder[folder] = {**state.stats(), "roots": counts}
        except UserError:
            log.warning("of an earlier version, or damaged; delete it: onepeace index remove %s", folder)
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
        shutil.rmtree(folder, ignore_errors=os.name == "nt")  # which cannot delete the lock while it is held
