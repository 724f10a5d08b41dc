"""`build`, `update` and `remove`, which modify an index: scan -> classify -> embed -> write."""

import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UsageError, UserError
from onepeace.index import nearest
from onepeace.index.classify import entries_to_read
from onepeace.index.derived import finish, keep_calibration, keep_text_branch, send
from onepeace.index.embedding import embed_entries
from onepeace.index.identity import check_model, identity
from onepeace.index.loading import Settings, model_on_demand
from onepeace.index.lock import LOCK, writing
from onepeace.index.paths import places_of
from onepeace.index.record import Recorder
from onepeace.index.report import Report
from onepeace.index.roots import Root, keep_roots, known_roots, listed, roots_of
from onepeace.index.scan import Scan, scan
from onepeace.index.store import Store, is_index

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

DEFAULT_MODEL = "tiny"


def build(
    folder: str | os.PathLike[str],
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    model: str | None = None,
    *,
    exclude: str | Sequence[str] = (),
    follow_links: bool = False,
    **options: Any,
) -> Report:
    """Build an index of files, or add files to one.

    Args:
        folder: folder of the index; created if it does not exist.
        paths: folders, files, tables (.csv, .tsv, .jsonl) and webdataset shards (.tar, .tar.gz; patterns with braces);
            one, or several.
        model: name or folder, see `onepeace.load`; None = the model of the index, or "tiny" for a new one.
        exclude: patterns as in a .gitignore file.
        follow_links: follow links that lead out of the folders.
        options: ``device``, ``dtype`` (as for `onepeace.load`), ``batch_size``, ``progress`` (False = silent);
            ``engine``, where to embed, "ray" or "ray:4"; ``store``, a vector database that finds the nearest vectors,
            "milvus://HOST", which later calls reuse. Both are modules of onepeace.plugins.

    Raises:
        UserError: nothing found, another process is writing, the index belongs to another model, the disk is full.
    """
    settings = Settings(**options)
    paths = listed(paths)
    patterns = [exclude] if isinstance(exclude, str) else exclude
    new_roots = roots_of(paths, patterns, follow_links)
    with writing(folder, create=True) as target, _opened(target, model) as store:
        roots = known_roots(store).values()
        scanned = scan([*new_roots, *(root for root in roots if root.kind == "removed")])
        if not roots and all(entry.item.problem for entry in scanned.entries.values()):
            raise UsageError(_nothing_in(paths, scanned))
        with store.transaction():  # first, so that `update` resumes an interrupted build
            keep_roots(store, new_roots)
        return _fill(store, scanned, settings)


def update(folder: str | os.PathLike[str], model: str | None = None, **options: Any) -> Report:
    """Update an index with new, changed, moved and missing files of its paths.

    Args:
        model, options: as for `build`.

    Raises:
        UserError: as for `build`; a folder is missing or has become empty: its disk may not be mounted, so no files
            are removed.
    """
    settings = Settings(**options)
    with writing(folder) as target, _opened(target, model) as store:
        roots = known_roots(store).values()
        if not roots and store.count():
            raise UserError(f"{folder}: the paths it was built from are lost; run: onepeace index build {folder} PATHS")
        scanned = scan(roots)
        unreadable = {str(problem.path) for problem in scanned.problems}
        readable = [root for root in roots if root.path not in unreadable]
        for root in readable:
            _refuse_unmounted(store, root, scanned)
        # Which files a table names that cannot be read is not known.
        is_whole = all(root in readable for root in roots if root.kind == "table")
        return _fill(store, scanned, settings, is_whole=is_whole)


def remove(folder: str | os.PathLike[str], paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> int:
    """Remove files, and all files of folders, from an index. The files on disk are not touched; `update` leaves them
    out from now on, and `build` with their own path adds them again.

    Returns:
        The number of files.

    Raises:
        UserError: a path that is not in the index, or another process is writing.
    """
    with writing(folder) as target, closing(Store(target, write=True)) as store:
        roots = known_roots(store)
        as_typed = {os.path.abspath(path): path for path in listed(paths)}
        removed_paths: set[str] = set()
        ids = []
        for item in store.items():
            places = places_of(item.path) & as_typed.keys()
            removed_paths |= places
            if places:
                ids.append(item.id)
        if unknown := as_typed.keys() - roots.keys() - removed_paths:
            raise UserError(f"{os.fspath(as_typed[min(unknown)])}: not in the index {folder}")
        # Roots below a removed folder too: `update` would add their files again.
        roots_below = {path for path in roots if places_of(path) & as_typed.keys()}
        with store.transaction():
            keep_roots(store, [Root(path, "removed") for path in as_typed.keys() | roots_below])
            store.remove(ids)
        finish(store)
        return len(ids)


def _fill(store: Store, scanned: Scan, settings: Settings, *, is_whole: bool = False) -> Report:
    """Embed the entries of a scan in an index open for writing.

    Args:
        is_whole: whether the scan has all that the paths of the index have, so that files and captions that it lacks
            are removed.
    """
    report = Report(problems=[*scanned.problems], other_kinds=scanned.others)
    num_new = len(scanned.entries) - store.count()
    with model_on_demand(store.meta["model"], settings, num_new, report) as load:
        if settings.store is not None:
            send(store, settings.store)
        keep_calibration(store, load)
        recorder = Recorder(store, report)
        # A table that cannot be read may still have the captions.
        keeps_captions = not is_whole or bool(scanned.problems)
        _embed_new(recorder, scanned, load, settings, keeps_captions)
        if is_whole:
            recorder.remove_missing(scanned)
        keep_text_branch(store)
        finish(store)
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
def _opened(folder: Path, model: str | None) -> Iterator[Store]:
    """Context of an index open for writing, made if there is none; a new one is deleted if it is empty at the end, for
    example if the model does not load.

    Args:
        model: name of the model; None = that of the index, or `DEFAULT_MODEL` for a new one.

    Raises:
        UserError: the index was built with another model, or its model cannot be found.
    """
    if is_index(folder):
        with closing(Store(folder, write=True)) as store:
            about = check_model(store, model or store.meta["model"])
            if model is not None:
                with store.transaction():
                    store.meta["model"] = about["model"]  # its location may have changed
            yield store
        return
    store = create_store(folder, model or DEFAULT_MODEL)
    try:
        yield store
    finally:
        with closing(store):
            is_empty = not store.count()
        if is_empty:
            _delete_files(folder)


def create_store(folder: Path, model: str) -> Store:
    """New, empty index of a model."""
    from onepeace import __version__
    from onepeace.hub.folder import read_config
    from onepeace.hub.resolve import resolve

    about = identity(model)
    config = read_config(resolve(model)).model
    modalities = [key for key in config.adapters if key in config.projections]
    for path in nearest.derived(folder):  # derived from a database that is gone
        path.unlink()
    about |= {
        "made_by": f"onepeace {__version__}",
        "modalities": " ".join(modalities),
        "id": secrets.token_hex(8),
    }
    return Store.create(folder, config.embed_dim, about)


def _delete_files(folder: Path) -> None:
    """Delete an index, but for its lock, which is held."""
    with suppress(OSError):  # it was moved meanwhile
        for path in folder.iterdir():
            if path.name != LOCK:
                path.unlink()


def _nothing_in(paths: Sequence[str | os.PathLike[str]], scanned: Scan) -> str:
    """Message for paths without a file that can be embedded."""
    places = ", ".join(os.fspath(path) for path in paths)
    lines = [f"no image, audio, video or text files in {places}"]
    unreadable = [(problem.path, problem.reason) for problem in scanned.problems]
    unreadable += [(Path(path), entry.item.problem or "") for path, entry in scanned.entries.items()]
    if unreadable:
        path, reason = unreadable[0]
        lines.append(f"{len(unreadable)} cannot be read, as {path}: {reason}")
    lines += [f"{count} others: {name}" for name, count in scanned.others.most_common(5)]
    return "; ".join(lines)


def _refuse_unmounted(store: Store, root: Root, scanned: Scan) -> None:
    """UserError if a folder is empty or missing, or if the folder of a file is missing: a disk may not be mounted."""
    below = os.path.join(root.path, "")
    if root.kind == "removed":
        return
    if root.kind == "folder":
        has_files = any(path.startswith(below) for path in scanned.entries)
        had_files = any(item.path.startswith(below) for item in store.items("problem IS NULL"))
        is_there = has_files or not had_files
    else:
        is_there = os.path.isdir(os.path.dirname(root.path))
    if not is_there:
        remedy = f"if it is gone for good: onepeace index remove {store.folder} {shlex.quote(root.path)}"
        raise UserError(f"{root.path}: missing or empty, perhaps not mounted; its files stay in the index; {remedy}")
