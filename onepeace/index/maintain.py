"""`build`, `update` and `remove`, which change an index: scan -> classify -> embed -> write, and what follows from new
vectors: the scores of the unrelated queries, the files derived from them, a vector database."""

import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UsageError, UserError
from onepeace.extensions import plugin
from onepeace.files.walk import Unreadable
from onepeace.index.database import DATABASE, LOCAL, SIDE_FILES, Store, failing, is_index, writing
from onepeace.index.embed import Settings, embed_entries, model_on_demand
from onepeace.index.items import places_of, sql_below
from onepeace.index.match import banks_of, calibration_by_words, read_calibration
from onepeace.index.query import uses_text_branch
from onepeace.index.record import Recorder, Report
from onepeace.index.scan import Scan, entries_to_read, remove_missing, scan
from onepeace.index.sources import Root, keep_roots, known_roots, listed, roots_of
from onepeace.index.vectors import Matrix, derived, keep, remove_derived, vectors_state
from onepeace.index.verify import FOREIGN, Model, check_model, identity, is_name
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

DEFAULT_MODEL = "tiny"
NEXT = ".next.onepeace"
"""Folder inside an index with the index of the same files by another model, until that is complete."""


def build(
    folder: str | os.PathLike[str],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    model: Model | None = None,
    *,
    exclude: str | Sequence[str] = (),
    follow_links: bool = False,
    force: bool = False,
    **options: Any,
) -> Report:
    """Build an index of files, add files to one, or build one anew with another model.

    Args:
        folder: folder of the index; created if it does not exist.
        paths: folders, files, tables (.csv, .tsv, .jsonl) and webdataset shards (.tar, .tar.gz; patterns with braces);
            one, or several. None = all files of the index are embedded with another ``model``, and its vectors replace
            the old ones at once when they are complete; an interrupted call resumes.
        model: name or folder, see `onepeace.load`, or an `Embedder`; None = the model of the index, or "tiny" for a new
            one.
        exclude: patterns as in a .gitignore file.
        follow_links: follow links that lead out of the folders.
        force: delete the index that is there first, such as a damaged one.
        options: ``device``, ``dtype`` (as for `onepeace.load`; not for an `Embedder`), ``batch_size``, ``progress``
            (False = silent); ``engine``, where to embed, "ray" or "ray:4"; ``store``, a vector database that finds the
            nearest vectors, "milvus://HOST", which later calls reuse (both are modules of onepeace.plugins); ``reuse``,
            folders of other indexes, from which vectors of equal files by the same model are taken.

    Raises:
        UserError: nothing found, another process is writing, the index belongs to another model, the disk is full.
    """
    settings = Settings(**options).checked_for(model)
    if paths is None:
        if exclude or follow_links or force:
            raise UsageError("exclude, follow_links and force are for new paths; name them")
        return _built_anew(folder, model, settings)
    paths = listed(paths)
    patterns = [exclude] if isinstance(exclude, str) else exclude
    new_roots = roots_of(paths, patterns, follow_links)
    with writing(folder, create=True) as target:
        if force:
            _check_before_deleting(paths, new_roots, model, settings)
            _delete_index(target)
        with opened(target, model) as store:
            roots = known_roots(store).values()
            removed_roots = [root for root in roots if root.type == "removed"]
            scanned = scan([*new_roots, *removed_roots])
            if not roots:
                refuse_nothing(paths, scanned)
            with store.transaction():  # first, so that `update` resumes an interrupted build
                keep_roots(store, new_roots)
            return fill(store, scanned, settings, model=model)


def update(folder: str | os.PathLike[str], model: Model | None = None, **options: Any) -> Report:
    """Update an index with new, changed, moved and missing files of its paths.

    A folder that is missing or has become empty is a problem of the report, as its disk may not be mounted: its files
    stay. Where most files of a folder are missing, they are kept once (scan.py).

    Args:
        model, options: as for `build`.

    Raises:
        UserError: as for `build`.
    """
    settings = Settings(**options).checked_for(model)
    with writing(folder) as target, opened(target, model) as store:
        roots = known_roots(store).values()
        scanned = scan(roots)
        scanned.problems += unmounted(store, roots, scanned)
        # Which files a table names that cannot be read is not known.
        unreadable = {str(problem.path) for problem in scanned.problems}
        is_whole = not any(root.type == "table" and root.path in unreadable for root in roots)
        return fill(store, scanned, settings, model=model, is_whole=is_whole)


def remove(
    folder: str | os.PathLike[str],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    force: bool = False,
) -> int:
    """Remove files, and all files of folders, from an index. The files on disk are not touched; `update` leaves them
    out from now on, and `build` with their own path adds them again.

    Args:
        force: also take a folder above those of the index, such as "/", and all files with it.

    Returns:
        The number of files.

    Raises:
        UsageError: a path is not in the index, or lies above its folders.
        UserError: another process is writing.
    """
    with writing(folder) as target, closing(Store(target, write=True)) as store:
        roots = known_roots(store)
        as_typed = {os.path.abspath(path): path for path in listed(paths)}
        if not force:
            _refuse_above(as_typed, [path for path, root in roots.items() if root.type != "removed"])
        removed_paths: set[str] = set()
        ids = []
        for item in store.items():
            places = places_of(item.path) & as_typed.keys()
            removed_paths |= places
            if places:
                ids.append(item.id)
        unknown = as_typed.keys() - roots.keys() - removed_paths
        if unknown:
            raise UsageError(f"not in the index {folder}", where=os.fspath(as_typed[min(unknown)]))
        # Roots below a removed folder too: `update` would add their files again.
        roots_below = {path for path in roots if places_of(path) & as_typed.keys()}
        with store.transaction():
            keep_roots(store, [Root(path, "removed") for path in as_typed.keys() | roots_below])
            store.remove(ids)
        finish(store)
        return len(ids)


def _refuse_above(paths: Iterable[str], roots: Sequence[str]) -> None:
    """UsageError for a path that is in no root, and has roots in it."""
    for path in paths:
        inside = [root for root in roots if path in places_of(root)]
        if inside and places_of(path).isdisjoint(roots):
            files = f"all files of {inside[0]}" + (f" and {len(inside) - 1} more" if len(inside) > 1 else "")
            raise UsageError(f"would remove {files} from the index; name these, or give --force", where=path)


def _built_anew(folder: str | os.PathLike[str], model: Model | None, settings: Settings) -> Report:
    """Embed all files of an index with another model, in an index inside it, and replace its content by that."""
    if not is_index(folder):
        raise UsageError("no index there; name the PATHS to build it of", where=os.fspath(folder))
    if model is None:
        raise UsageError(f"name PATHS to add to {os.fspath(folder)}, or with --model another model for all its files")
    entries = identity(model)
    with writing(folder) as target, closing(Store(target, write=True)) as store:
        next_folder = target / NEXT
        if not _is_made_with(store, entries):
            _drop_other(next_folder, entries)
            report = _build_next(store, next_folder, model, settings)
            status("putting the new vectors in place of the old ones ...")
            _replace_all(store, next_folder)
            finish(store, settings.store)
            shutil.rmtree(next_folder)
            return report
        shutil.rmtree(next_folder, ignore_errors=True)  # of a call that was killed at its end, or given up
    return update(folder, model, **vars(settings))


def _is_made_with(store: Store, entries: dict[str, str]) -> bool:
    return all(store.meta[key] == entries[key] for key in ("model_hash", "preprocessing"))


def _drop_other(next_folder: Path, entries: dict[str, str]) -> None:
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


def _build_next(store: Store, next_folder: Path, model: Model, settings: Settings) -> Report:
    """Build an index of the same paths with another model.

    Raises:
        UserError: files of the index are missing or cannot be read now, so that their vectors would be lost.
    """
    roots = known_roots(store).values()
    scanned = scan(roots)
    readable = {path for path, entry in scanned.entries.items() if entry.item.problem is None}
    lost = [item.path for item in store.items("problem IS NULL") if item.path not in readable]
    if lost:
        remedy = f"if they are gone for good, run first: onepeace index update {shlex.quote(str(store.folder))}"
        raise UserError(
            f"missing or not readable, and {len(lost)} files in all, perhaps of a disk that is not mounted; the index "
            f"keeps its model; {remedy}",
            where=lost[0],
        )
    with opened(next_folder, model) as new:
        with new.transaction():
            keep_roots(new, roots)
        return fill(new, scanned, replace(settings, store=None), model=model, is_whole=True)


def _replace_all(store: Store, next_folder: Path) -> None:
    """Put the content of another index in place of that of an index, in one transaction, so that readers see either."""
    for path in derived(next_folder):
        path.replace(store.folder / path.name)
    with closing(Store(next_folder, write=True)) as new:
        with new.transaction():
            new.meta["store"] = store.meta["store"]
        with failing(store.folder, "written"):
            new.connection.backup(store.connection)
    store.meta = new.meta


def _check_before_deleting(
    paths: Sequence[str | os.PathLike[str]], roots: Sequence[Root], model: Model | None, settings: Settings
) -> None:
    """Raise the errors of a build by wrong arguments, while the index that it will delete is still there."""
    from onepeace.device import choose_device

    identity(DEFAULT_MODEL if model is None else model)
    if settings.engine is None:  # an engine's devices are those of other machines
        choose_device(settings.device)
    refuse_nothing(paths, scan(roots))


def refuse_nothing(paths: Sequence[str | os.PathLike[str]], scanned: Scan) -> None:
    """UsageError if no file that was found can be embedded."""
    if not all(entry.item.problem for entry in scanned.entries.values()):
        return
    places = ", ".join(os.fspath(path) for path in paths)
    message = f"no image, audio, video or text files in {places}"
    unreadable = [f"{problem.path}: {problem.reason}" for problem in scanned.problems]
    unreadable += [f"{path}: {entry.item.problem}" for path, entry in scanned.entries.items()]
    raise UsageError(f"{message}; {len(unreadable)} cannot be read, such as {unreadable[0]}" if unreadable else message)


def fill(
    store: Store, scanned: Scan, settings: Settings, *, model: Model | None = None, is_whole: bool = False
) -> Report:
    """Embed the entries of a scan in an index open for writing, and update what is derived from its vectors. Finished
    ones stay even if the call is interrupted.

    Args:
        model: None = the model of the index, by its name.
        is_whole: whether the scan has all that the paths of the index have, so that files and captions that it lacks
            are removed.
    """
    if settings.store is not None:
        send(store, settings.store)
    report = Report(problems=[*scanned.problems], other_kinds=scanned.others)
    num_new = len(scanned.entries) - store.count()
    if model is None or is_name(model):
        model = store.meta["model"]
    with model_on_demand(model, settings, num_new, report) as load:
        keep_calibration(store, load)
        with closing(Recorder(store, report, settings.reuse)) as recorder:
            recorder.renew_names()
            start = time.perf_counter()
            entries = list(entries_to_read(recorder, scanned, keeps_captions=not is_whole))
            embed_entries(recorder, entries, load, settings)
            report.seconds += time.perf_counter() - start
            recorder.flush()
            if is_whole:
                remove_missing(recorder, scanned)
    keep_text_branch(store)
    finish(store)
    return report


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
            entries = check_model(folder, store.meta, model)
            if model is not None and not is_name(model):
                lacking = [modality for modality in store.modalities if modality not in model.modalities]
                if lacking:
                    raise UserError(f"has {', '.join(lacking)}, which this Embedder was loaded without", where=folder)
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
            _delete_index(folder)


def create_store(folder: Path, model: Model) -> Store:
    """New, empty index of a model."""
    from onepeace import __version__
    from onepeace.hub.resolve import fetch_model

    if is_name(model):
        config = fetch_model(model).config.model
        embed_dim = config.embed_dim
        modalities = [modality for modality in config.adapters if modality in config.projections]
    else:
        embed_dim = model.embed_dim
        modalities = list(model.modalities_with_vectors)
    about = {"made_by": f"onepeace {__version__}", "modalities": " ".join(modalities)}
    return Store.create(folder, embed_dim, {**identity(model), **about})


def _delete_index(folder: Path) -> None:
    """Delete an index except its lock, which is held."""
    with suppress(OSError):  # it was moved meanwhile
        remove_derived(folder)
        shutil.rmtree(folder / NEXT, ignore_errors=True)
        for ending in ("", *SIDE_FILES):  # last: without it, no other file is known to be ours
            Path(f"{folder / DATABASE}{ending}").unlink(missing_ok=True)


def unmounted(store: Store, roots: Iterable[Root], scanned: Scan) -> list[Unreadable]:
    """Folders that are empty or missing, and files in folders that are missing: a disk may not be mounted."""
    unreadable = {str(problem.path) for problem in scanned.problems}
    missing = []
    for root in roots:
        if root.type == "folder":
            is_there = any(path.startswith(os.path.join(root.path, "")) for path in scanned.entries)
        else:
            is_there = root.type == "removed" or os.path.isdir(os.path.dirname(root.path))
        if is_there or root.path in unreadable:
            continue
        if store.count(f"problem IS NULL AND {sql_below([root.path])}"):
            remedy = f"if it is gone for good: onepeace index remove {store.folder} {shlex.quote(root.path)}"
            reason = f"missing or empty, perhaps not mounted; its files stay in the index; {remedy}"
            missing.append(Unreadable(Path(root.path), reason))
    return missing


def keep_calibration(store: Store, load: "Callable[[], Embedder]") -> None:
    """Store the unrelated queries of the model: those in its folder, else generic words, which it encodes now."""
    from onepeace.hub.resolve import fetch_model

    kept = store.blob("calibration")
    latest = None
    if FOREIGN not in store.meta:
        latest = read_calibration(fetch_model(store.meta["model"]).folder, store.meta["model_hash"])
    if latest is None and kept is None and "text" in store.modalities:
        latest = calibration_by_words(load, store.meta["model_hash"])
    if latest is not None and latest != kept:
        with store.transaction():
            store.keep_blob("calibration", latest)
            store.meta["scored"] = ""  # the old scores are of other queries


def keep_text_branch(store: Store) -> None:
    """Export the text branch of the model of an index with many files."""
    if FOREIGN not in store.meta and "text" in store.modalities and uses_text_branch(store):
        from onepeace.export import text_branch

        text_branch.keep_text_branch(store.meta["model"], store.meta["model_hash"])


def finish(store: Store, address: str | None = None) -> None:
    """Update what is derived from the vectors: the scores of the unrelated queries, the files, a vector database.

    Args:
        address: of another vector database than that of the index.
    """
    score(store)
    keep(store)
    send(store, address or store.meta["store"])


def score(store: Store) -> None:
    """Score the unrelated queries against the vectors that are new since the last time."""
    state = vectors_state(store)
    if store.meta.get("scored") != state:
        best = banks_of(store).scores_to_bytes()
        with store.transaction():
            store.keep_blob("best", best)
            store.meta["scored"] = state


def send(store: Store, address: str) -> None:
    """Update a vector database, "local" for none; its address is stored in the index once it has answered."""
    if address != LOCAL:
        matrix = Matrix(store)
        with closing(plugin(address, "open_store")(address, store, matrix)) as service:
            service.send()
    with store.transaction():
        store.meta["store"] = address
