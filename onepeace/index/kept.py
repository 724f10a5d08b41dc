"""Cached indexes of plain folders, in the user's cache folder, one per set of paths and model."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onepeace.errors import UsageError, UserError
from onepeace.files.cache import cache_folder
from onepeace.index.identity import identity
from onepeace.index.index import Index
from onepeace.index.lock import LOCK, Locked, writing
from onepeace.index.maintain import build, update
from onepeace.index.report import Report
from onepeace.index.store import FORMAT, is_index
from onepeace.progress import status

log = logging.getLogger(__name__)


def indexes_folder() -> Path:
    return cache_folder() / "indexes"


def folder_of(paths: Sequence[str | os.PathLike[str]], model: str = "tiny") -> Path:
    """Folder of the cached index of some paths and a model; it may not exist."""
    places = sorted(os.path.abspath(path) for path in paths)
    digest = hashlib.blake2b(json.dumps([places, identity(model), FORMAT]).encode(), digest_size=6).hexdigest()
    return indexes_folder() / f"{os.path.basename(places[0])[:40] or 'root'}-{digest}.index"


def kept_index(
    paths: Sequence[str | os.PathLike[str]], model: str | None = None, **options: Any
) -> tuple[Path, Report]:
    """Build or update the cached index of folders and files; returns its folder and a report. Options: see `build`.

    If another process does so at the moment, it is waited for.
    """
    from filelock import FileLock

    folder = folder_of(paths, model or "tiny")
    while True:
        try:
            if is_index(folder):
                return folder, update(folder, model, **options)
            return folder, build(folder, paths, model, **options)
        except Locked:
            status("another process brings the index of these files up to date; waiting for it ...")
            with FileLock(folder / LOCK):
                pass


def kept() -> dict[Path, dict[str, Any]]:
    """The `Index.stats` of each index in the cache folder, by its folder."""
    found = {}
    for folder in filter(is_index, sorted(indexes_folder().glob("*.index"))):
        try:
            with Index.open(folder) as index:
                found[folder] = index.stats()
        except UserError as error:  # of an earlier version, or damaged
            log.warning("%s", error)
    return found


def delete(folder: str | os.PathLike[str]) -> None:
    """Delete an index of the cache folder.

    Raises:
        UsageError: the index is not in the cache folder; UserError: another process is writing to it.
    """
    if Path(folder).resolve().parent != indexes_folder().resolve():
        raise UsageError(f"{folder}: not a cached index (see index list); to remove single files, name their PATHS")
    with writing(folder):
        pass  # no other process writes to it now
    shutil.rmtree(folder)
