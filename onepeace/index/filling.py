"""One run over an index: the index is opened for writing, or made, and filled with what a scan has."""

import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.errors import UserError
from onepeace.index.classify import entries_to_read
from onepeace.index.derived import finish, keep_calibration, keep_text_branch, send
from onepeace.index.embedding import embed_entries
from onepeace.index.identity import FOREIGN, Model, check_model, identity, is_name
from onepeace.index.loading import Settings, model_on_demand
from onepeace.index.lock import LOCK
from onepeace.index.matrix import remove_derived
from onepeace.index.missing import remove_missing
from onepeace.index.part import Part, sql_below
from onepeace.index.record import Recorder
from onepeace.index.report import Report
from onepeace.index.roots import Root
from onepeace.index.scan import Scan
from onepeace.index.store import Store, is_index

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

DEFAULT_MODEL = "tiny"


def fill(
    store: Store,
    scanned: Scan,
    settings: Settings,
    *,
    model: Model | None = None,
    is_whole: bool = False,
    part: Part | None = None,
) -> Report:
    """Embed the entries of a scan in an index open for writing, and update what is derived from its vectors.

    Args: see `embed_scan`.
    """
    if settings.store is not None:
        send(store, settings.store)
    report = embed_scan(store, scanned, settings, model=model, is_whole=is_whole, part=part)
    keep_text_branch(store)
    finish(store)
    return report


def embed_scan(
    store: Store,
    scanned: Scan,
    settings: Settings,
    *,
    model: Model | None = None,
    is_whole: bool = False,
    part: Part | None = None,
) -> Report:
    """Embed the entries of a scan in an index open for writing.

    Args:
        model: None = the model of the index, by its name.
        is_whole: whether the scan has all that the paths of the index have, so that files and captions that it lacks
            are removed.
        part: what was scanned, if it is a part of an index; files that it lacks are removed.
    """
    report = Report(problems=[*scanned.problems], other_kinds=scanned.others)
    condition = "1" if part is None else part.sql()
    num_new = len(scanned.entries) - store.count(condition)
    if model is None or is_name(model):
        model = store.meta["model"]
    with model_on_demand(model, settings, num_new, report) as load:
        keep_calibration(store, load)
        recorder = Recorder(store, report, part)
        recorder.renew_names()
        # A table that cannot be read may still have the captions.
        keeps_captions = not is_whole or bool(scanned.problems)
        _embed_new(recorder, scanned, load, settings, keeps_captions)
        if is_whole or part is not None:
            remove_missing(recorder, scanned)
    return report


def _embed_new(
    recorder: Recorder, scanned: Scan, load: "Callable[[], Embedder]", settings: Settings, keeps_captions: bool
) -> None:
    """Embed new and changed entries. Finished ones stay in the index even if the call is interrupted."""
    start = time.perf_counter()
    try:
        entries = list(entries_to_read(recorder, scanned, keeps_captions=keeps_captions))
        embed_entries(recorder, entries, load, batch_size=settings.batch_size, progress=settings.progress)
    finally:
        recorder.flush()
        recorder.report.seconds += time.perf_counter() - start


@contextmanager
def opened(folder: Path, model: Model | None) -> Iterator[Store]:
    """Context of an index open for writing, made if there is none; a new one is deleted if it is empty at the end, for
    example if the model does not load.

    Args:
        model: None = that of the index, or `DEFAULT_MODEL` for a new one.

    Raises:
        UserError: the index was built with another model, or its model cannot be found, or lacks modalities.
    """
    if is_index(folder):
        with closing(Store(folder, write=True)) as store:
            entries = check_model(store, model)
            _check_modalities(store, model)
            if model is not None and FOREIGN not in entries:
                with store.transaction():
                    store.meta["model"] = entries["model"]  # its location may have changed
                    store.meta.pop(FOREIGN, None)
            yield store
        return
    store = create_store(folder, DEFAULT_MODEL if model is None else model)
    try:
        yield store
    finally:
        with closing(store):
            is_empty = not store.count()
        if is_empty:
            _delete_files(folder)


def _check_modalities(store: Store, model: Model | None) -> None:
    """UserError if an `Embedder` was loaded without modalities that the index has."""
    if model is None or is_name(model):
        return
    lacking = [modality for modality in store.modalities if modality not in model.modalities]
    if lacking:
        raise UserError(f"has {', '.join(lacking)}, which this Embedder was loaded without", where=store.folder)


def create_store(folder: Path, model: Model) -> Store:
    """New, empty index of a model."""
    from onepeace import __version__

    entries = identity(model)
    embed_dim, modalities = _shape_of(model)
    remove_derived(folder)  # from a database that is gone
    entries |= {
        "made_by": f"onepeace {__version__}",
        "modalities": " ".join(modalities),
        "id": secrets.token_hex(8),
    }
    return Store.create(folder, embed_dim, entries)


def _shape_of(model: Model) -> tuple[int, list[str]]:
    """Dimension of the vectors of a model, and the modalities that have vectors."""
    if not is_name(model):
        return model.embed_dim, list(model.modalities_with_vectors)
    from onepeace.hub.folder import read_config
    from onepeace.hub.resolve import resolve

    config = read_config(resolve(model)).model
    return config.embed_dim, [modality for modality in config.adapters if modality in config.projections]


def _delete_files(folder: Path) -> None:
    """Delete an index except its lock, which is held."""
    with suppress(OSError):  # it was moved meanwhile
        for path in folder.iterdir():
            if path.name != LOCK:
                path.unlink()


def refuse_unmounted(store: Store, root: Root, scanned: Scan) -> None:
    """UserError if a folder is empty or missing, or if the folder of a file is missing: a disk may not be mounted."""
    if root.type == "removed":
        return
    if root.type == "folder":
        below = os.path.join(root.path, "")
        has_files = any(path.startswith(below) for path in scanned.entries)
        is_there = has_files or not store.count(f"problem IS NULL AND {sql_below([root.path])}")
    else:
        is_there = os.path.isdir(os.path.dirname(root.path))
    if not is_there:
        remedy = f"if it is gone for good: onepeace index remove {store.folder} {shlex.quote(root.path)}"
        raise UserError(
            f"missing or empty, perhaps not mounted; its files stay in the index; {remedy}", where=root.path
        )
