"""Moves an index to another model: all its files are embedded anew, beside the old vectors, which searches use
meanwhile; then the new vectors replace the old ones in one transaction."""

import os
import secrets
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from onepeace.errors import UserError
from onepeace.index.derived import finish, keep_text_branch, score
from onepeace.index.filling import embed_scan, opened, refuse_unmounted
from onepeace.index.identity import FOREIGN, Model, identity
from onepeace.index.loading import Settings
from onepeace.index.lock import writing
from onepeace.index.matrix_files import vectors_state
from onepeace.index.missing import lost_by_folders
from onepeace.index.paths import places_of
from onepeace.index.report import Report
from onepeace.index.roots import keep_roots, known_roots
from onepeace.index.scan import Scan, scan
from onepeace.index.store import Store
from onepeace.progress import status

NEXT = "next"
"""Folder inside an index with the index of the same files by the model that it is moved to, until that is complete."""
MODEL_ENTRIES = ("model", "model_hash", "preprocessing", "made_by", "modalities", "embed_dim")
"""Metadata of an index that say how its vectors were made."""
READ = 512
"""Number of files whose vectors are copied at once."""


def move(folder: str | os.PathLike[str], model: Model, settings: Settings) -> Report | None:
    """Move an index to another model. An interrupted move to the same model resumes where it stopped.

    Args:
        model: name of the model, or an `Embedder`.

    Returns:
        The report of the new vectors; None if the index has those of this model.

    Raises:
        UserError: files of the index cannot be read now, so that their vectors would be lost; another process is
            writing; the disk is full. The index then keeps its old vectors.
    """
    entries = identity(model)
    with writing(folder) as target, closing(Store(target, write=True)) as store:
        next_folder = target / NEXT
        if _is_made_with(store, entries):
            shutil.rmtree(next_folder, ignore_errors=True)  # of a move that was killed at its end, or given up
            return None
        _drop_other_move(next_folder, entries)
        scanned = _scan_all(store)
        with opened(next_folder, model) as new:
            with new.transaction():
                keep_roots(new, known_roots(store).values())
            local_settings = replace(settings, store=None)
            report = embed_scan(new, scanned, local_settings, model=model, is_whole=True)
            score(new)
            report.vanished = _count_vanished(store, scanned)
            status("putting the new vectors in place of the old ones ...")
            _replace_all(store, new)
        shutil.rmtree(next_folder)
        keep_text_branch(store)
        finish(store, settings.store)
    return report


def _is_made_with(store: Store, entries: dict[str, str]) -> bool:
    return all(store.meta[key] == entries[key] for key in ("model_hash", "preprocessing"))


def _drop_other_move(next_folder: Path, entries: dict[str, str]) -> None:
    """Delete what was embedded for a third model, or is damaged."""
    if not next_folder.exists():
        return
    try:
        with closing(Store(next_folder)) as started:
            if _is_made_with(started, entries):
                return
    except UserError:
        pass
    shutil.rmtree(next_folder)


def _scan_all(store: Store) -> Scan:
    """Scan all that an index was built from.

    Raises:
        UserError: the paths are lost, or files of the index lie where nothing can be read now.
    """
    roots = known_roots(store).values()
    if not roots:
        raise UserError("the paths it was built from are lost; build a new index", where=store.folder)
    scanned = scan(roots)
    reasons = {str(problem.path): problem.reason for problem in scanned.problems}
    for item in store.items("problem IS NULL"):
        unreadable = places_of(item.path) & reasons.keys()
        if item.path not in scanned.entries and unreadable:
            path = min(unreadable)
            raise UserError(f"{reasons[path]}; its files would be lost, so the index keeps its model", where=path)
    for root in roots:
        refuse_unmounted(store, root, scanned)
    lost = [item.path for item in lost_by_folders(store, scanned)]
    if lost:
        folder = os.path.commonpath(lost)
        remedy = f"if they are gone for good, run first, twice: onepeace index update {shlex.quote(str(store.folder))}"
        raise UserError(f"{len(lost)} files are missing, perhaps not mounted; {remedy}", where=folder)
    return scanned


def _count_vanished(store: Store, scanned: Scan) -> int:
    """Number of files with vectors that a scan has not found."""
    return sum(item.path not in scanned.entries for item in store.items("problem IS NULL"))


def _replace_all(store: Store, new: Store) -> None:
    """Put the files, vectors and model of one index in place of those of another, in one transaction. A file keeps its
    number."""
    ids = {item.path: item.id for item in store.items()}
    with store.transaction():
        store.remove(ids.values())
        store.meta.pop(FOREIGN, None)
        for key in (*MODEL_ENTRIES, FOREIGN):
            if key in new.meta:
                store.meta[key] = new.meta[key]
        store.meta["id"] = secrets.token_hex(8)  # a vector database starts over
        for new_ids in _blocks([item.id for item in new.items()]):
            _copy(new_ids, new, store, ids)
        for name in ("calibration", "best"):
            content = new.blob(name)
            if content is None:
                store.drop_blob(name)
            else:
                store.keep_blob(name, content)
        store.meta["scored"] = vectors_state(store)


def _copy(
    new_ids: Sequence[int],
    new: Store,
    store: Store,
    ids: Mapping[str, int],
) -> None:
    """Add files of one index to another; what is read is verified by its checksums.

    Args:
        ids: numbers that files get, by path.
    """
    intact = new.intact(new_ids)
    words = new.words(new_ids)
    files = []
    for item, spans, _ in intact.values():
        numbered_item = replace(item, id=ids.get(item.path, 0))
        files.append((numbered_item, spans))
    vectors = np.concatenate([rows for _, _, rows in intact.values()])
    store.add(files, vectors, [words[new_id] for new_id in intact])


def _blocks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), READ):
        yield ids[start : start + READ]
