"""The indexes in the user's cache folder, which keep the vectors of files that are searched without naming an index.

There is one for each set of paths and model, so an answer depends on nothing else. It takes the vectors of files that
another one of the same model has from there, by path, size and time, or by content; so nothing is embedded twice.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import UNFINISHED, Locked, cache_folder, held, marked, remove_unfinished_in, unless_held
from onepeace.index.database import DATABASE, INDEX_FORMAT, Damaged, OtherVersion, Store, is_index, writing
from onepeace.index.index import Index
from onepeace.index.items import sql_below
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
WAITING_SECONDS = 0.1
"""Seconds after which an index that another process writes to is looked at again."""


class KeptIndex(NamedTuple):
    """An index in the cache folder, up to date."""

    folder: Path
    report: Report
    is_new: bool
    """Whether these paths were not searched before."""


def indexes_folder() -> Path:
    """Folder of the indexes."""
    return cache_folder() / "indexes"


@contextmanager
def kept_index(paths: Paths, model: str | None = None, **options: Any) -> Iterator[KeptIndex]:
    """Context with the index of some files and folders in the cache: built, or brought up to date, and kept meanwhile.
    Options: see `build`.

    If another process writes to it at the moment, that is waited for. One that is damaged is built anew.

    Raises:
        UserError: as for `build` and `update`; the model reads none of the files.
    """
    paths = listed(paths)
    name = model or DEFAULT_MODEL
    folder = _folder_of(paths, name)
    with ExitStack() as stack:
        while True:
            is_new = not is_index(folder)
            report = _up_to_date(folder, paths, name, is_new, options)
            if report is not None:
                with suppress(FileNotFoundError):  # another process deleted it just now
                    stack.enter_context(held(folder))
                    os.utime(folder / DATABASE)
                    break
        yield KeptIndex(folder, report, is_new)


def _up_to_date(folder: Path, paths: Paths, model: str, is_new: bool, options: dict[str, Any]) -> Report | None:
    """Build or update an index; None if it must be looked at again."""
    try:
        if not is_new:
            return update(folder, model, reuse=folders(), **options)
        _forget_small()
        report = build(folder, paths, model, reuse=folders(), **options)
    except Damaged:
        with suppress(Locked):  # else it is waited for
            delete(folder)
        return None
    except Locked:
        status("another process brings the index of these files up to date; waiting for it ...")
        time.sleep(WAITING_SECONDS)
        return None
    except UserError:
        if is_new or is_index(folder):
            raise
        return None  # another process deleted it just now
    if report.left_out and not (report.embedded or report.copied or report.problems):
        kinds = ", ".join(f"{number} {modality}" for modality, number in report.left_out.items())
        raise UsageError(f"the model {model} reads none of these files ({kinds})", where=os.fspath(paths[0]))
    return report


def is_lost(error: UserError) -> bool:
    """Whether an error is of an index in the cache that is damaged, and now deleted, or that another process has
    deleted: `kept_index` makes it anew."""
    if not is_kept(error.where):
        return False
    if isinstance(error, Damaged):
        with suppress(UserError):  # another process writes to it, or has deleted it
            delete(error.where)
        return True
    return not is_index(error.where)


def _folder_of(paths: Paths, model: str) -> Path:
    """Folder of the index of a set of paths and a model; it may not exist."""
    places = sorted({os.path.abspath(path) for path in paths})
    content = json.dumps([places, identity(model), INDEX_FORMAT])
    digest = hashlib.blake2b(content.encode(), digest_size=6).hexdigest()
    name = os.path.basename(places[0])[:40] or "root"
    return indexes_folder() / f"{name}-{digest}.index"


def _forget_small() -> None:
    """Delete the small indexes that were used least recently, as a new one comes, and those that are damaged or of an
    earlier version; and what killed processes left of deleting one."""
    remove_unfinished_in(indexes_folder())
    last_used = {}
    for folder in folders():
        with suppress(UserError, FileNotFoundError):  # another process is writing to it, or has deleted it
            try:
                with closing(Store(folder)) as store:
                    if store.count() < SMALL:
                        last_used[folder] = os.path.getmtime(folder / DATABASE)
            except (Damaged, OtherVersion):
                delete(folder)
    for folder in sorted(last_used, key=last_used.__getitem__)[: -MOST_SMALL + 1]:
        with suppress(UserError, FileNotFoundError), unless_held(folder) as is_held:
            # else it is searched, or was meanwhile
            if not is_held and os.path.getmtime(folder / DATABASE) == last_used[folder]:
                delete(folder)


def folders() -> list[Path]:
    """Folders of all indexes in the cache folder."""
    return [folder for folder in sorted(indexes_folder().glob("*.index")) if is_index(folder)]


def kept() -> dict[Path, dict[str, Any]]:
    """The `Index.stats` of each index in the cache folder, by its folder; "roots" has the number of files of each."""
    stats_by_folder = {}
    for folder in folders():
        try:
            with Index.open(folder) as index, index.reading() as state:
                counts = {}
                for path in state.roots:
                    counts[path] = state.store.count(f"problem IS NULL AND {sql_below([path])}")
                stats_by_folder[folder] = {**state.stats(), "roots": counts}
        except UserError:
            log.warning("%s: damaged, or of an earlier version; deleted when the next new index comes", folder)
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
    with writing(folder) as doomed:
        if os.name != "nt":  # which can neither rename nor delete the lock while it is held
            doomed = doomed.rename(marked(doomed, UNFINISHED))  # so that others find all of it or nothing
        shutil.rmtree(doomed, ignore_errors=True)
