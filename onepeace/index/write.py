"""`build`, `update` and `remove`, which modify an index. One process writes at a time."""

import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import make_folder
from onepeace.index import nearest
from onepeace.index.builder import Builder, Report
from onepeace.index.calibrate import banks_of_words, read_calibration
from onepeace.index.index import banks_of, check_model, identity
from onepeace.index.plugin import plugin
from onepeace.index.sources import Root, Scan, keep_roots, known_roots, listed, places_of, roots_of, scan
from onepeace.index.store import Store, is_index, no_index
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

LOCK = "lock"
COMPILE_FROM = 5000
"""Number of new files from which on a wide model is compiled: this takes 20 s to a minute, and saves a seventh."""
EXPORT_FROM = 1000
"""Number of files from which on the model's text branch is exported in 10 s; without it a text query takes 3 s."""


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
    paths = listed(paths)
    given = roots_of(paths, [exclude] if isinstance(exclude, str) else exclude, follow_links)
    with writing(folder, create=True) as target, _opened(target, model) as store:
        known = known_roots(store).values()
        found = scan([*given, *(root for root in known if root.kind == "removed")])
        if not known and all(entry.item.problem for entry in found.entries.values()):
            raise UsageError(_nothing(paths, found))
        with store.transaction():  # first, so that `update` resumes an interrupted build
            keep_roots(store, given)
        return _fill(store, found, **options)


def update(folder: str | os.PathLike[str], model: str | None = None, **options: Any) -> Report:
    """Update an index with new, changed, moved and missing files of its paths.

    Args:
        model, options: as for `build`.

    Raises:
        UserError: as for `build`; a folder is missing or has become empty: its disk may not be mounted, so no files
            are removed.
    """
    with writing(folder) as target, _opened(target, model) as store:
        roots = known_roots(store).values()
        if not roots and store.count():
            raise UserError(f"{folder}: the paths it was built from are lost; run: onepeace index build {folder} PATHS")
        found = scan(roots)
        unreadable = {str(problem.path) for problem in found.problems}
        readable = [root for root in roots if root.path not in unreadable]
        for root in readable:
            _refuse_unmounted(store, root, found)
        # Which files a table names that cannot be read is not known.
        are_all_known = all(root in readable for root in roots if root.kind == "table")
        return _fill(store, found, whole=are_all_known, **options)


def remove(folder: str | os.PathLike[str], paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> int:
    """Remove files, and all files of folders, from an index. The files on disk are not touched; `update` leaves them
    out from now on, and `build` with their own path adds them again.

    Returns:
        The number of files.

    Raises:
        UserError: a path that is not in the index, or another process is writing.
    """
    with writing(folder) as target, closing(Store(target, write=True)) as store:
        known = known_roots(store)
        removed = {os.path.abspath(path): path for path in listed(paths)}
        named = {item.id: places_of(item.path) & removed.keys() for item in store.items()}
        ids = [id_ for id_, places in named.items() if places]
        if missing := removed.keys() - known.keys() - set().union(*named.values()):
            raise UserError(f"{os.fspath(removed[min(missing)])}: not in the index {folder}")
        with store.transaction():  # roots below a removed folder too: `update` would add them again
            roots = {*removed, *(path for path in known if places_of(path) & removed.keys())}
            keep_roots(store, [Root(path, "removed") for path in roots])
            store.remove(ids)
        finish(store)
        return len(ids)


class Locked(UserError):
    """Another process is writing to an index."""


@contextmanager
def writing(folder: str | os.PathLike[str], create: bool = False) -> Iterator[Path]:
    """Context with the write lock of an index; yields its folder.

    Args:
        create: create the folder if it does not exist; it is removed again if no index was written.

    Raises:
        UserError: there is no index, or the folder has other files in it; Locked: another process is writing.
    """
    from filelock import FileLock, Timeout

    target = Path(folder)
    if os.path.exists(target) and not os.path.isdir(target):  # False without permission, unlike those of Path
        raise UsageError(f"{target}: is a file; name a folder")
    if not create and not is_index(target):
        raise no_index(target)
    lock = FileLock(target / LOCK, timeout=0)
    try:
        is_new = not os.path.exists(target)
        if not is_new and not is_index(target) and not (target / LOCK).exists() and any(target.iterdir()):
            raise UserError(f"{target}: a folder with other files in it, and no index; name a new folder")
        make_folder(target)
        lock.acquire()
        for leftover in target.glob(".*.tmp*"):  # partial files of a run that was killed
            leftover.unlink(missing_ok=True)
    except Timeout:
        raise Locked(f"{target}: another process is writing to this index; wait until it has ended") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    try:
        yield target
    finally:
        lock.release()
        with suppress(OSError):  # it was moved meanwhile
            if is_new and {path.name for path in target.iterdir()} == {LOCK}:  # no index was written
                (target / LOCK).unlink()
                target.rmdir()


def _nothing(paths: Sequence[str | os.PathLike[str]], found: Scan) -> str:
    unread = [*found.problems, *((path, entry.item.problem) for path, entry in found.entries.items())]
    first = [f"{len(unread)} cannot be read, as {path}: {reason}" for path, reason in unread[:1]]
    others = [f"{count} others: {name}" for name, count in found.others.most_common(5)]
    places = ", ".join(os.fspath(path) for path in paths)
    return "; ".join([f"no image, audio, video or text files in {places}", *first, *others])


def _refuse_unmounted(store: Store, root: Root, found: Scan) -> None:
    """UserError if a folder is empty or missing, or if the folder of a file is missing: a disk may not be mounted."""
    below = os.path.join(root.path, "")
    if root.kind == "folder":
        is_there = any(path.startswith(below) for path in found.entries)
        is_there = is_there or not any(item.path.startswith(below) for item in store.items("problem IS NULL"))
    else:
        is_there = root.kind == "removed" or os.path.isdir(os.path.dirname(root.path))
    if not is_there:
        remedy = f"if it is gone for good: onepeace index remove {store.folder} {shlex.quote(root.path)}"
        raise UserError(f"{root.path}: missing or empty, perhaps not mounted; its files stay in the index; {remedy}")


def _fill(
    opened: Store,
    found: Scan,
    whole: bool = False,
    *,
    device: str | None = None,
    dtype: str = "auto",
    engine: str | None = None,
    store: str | None = None,
    batch_size: int = 32,
    progress: bool | None = None,
) -> Report:
    """Embed the entries found in an index open for writing; if they are ``whole``, all that its paths have, remove
    files and captions that are gone."""
    with ExitStack() as stack:

        @cache
        def load() -> "Embedder":
            is_much = len(found.entries) - opened.count() >= COMPILE_FROM
            embedder = _load(opened.meta["model"], device, dtype, engine, is_much)
            if engine is not None:
                stack.enter_context(closing(embedder))
            return embedder

        if store is not None:
            _send(opened, store)
        _keep_calibration(opened, load)
        builder = Builder(opened, found, whole, load, batch_size, progress)
        builder.fill()
        if whole:
            builder.remove_missing()
        if "text" in opened.kinds and opened.count("problem IS NULL") >= EXPORT_FROM:
            from onepeace.export.text_branch import keep_text_branch

            keep_text_branch(opened.meta["model"], opened.meta["model_hash"])
        finish(opened)
        if engine is None and load.cache_info().currsize:
            builder.report.embedder = load()
    return builder.report


def _load(name: str, device: str | None, dtype: str, engine: str | None, is_much: bool) -> Any:
    """Create the model or engine; a wide model is compiled if there are many files to embed."""
    from onepeace import compiling
    from onepeace.embed import embedder

    status(f"loading the model {name} ...")
    if engine is not None:
        return plugin(engine, "open_engine")(engine, name, device, dtype)
    model = embedder.load(name, device=device, dtype=dtype)
    if is_much and model.module.config.dim >= compiling.MIN_WIDTH:
        status("compiling the model's blocks, about a minute ...")
        compiling.compile_blocks(model.module)
    return model


def finish(store: Store) -> None:
    """Update what is derived from the vectors: the scores of the unrelated queries, the files, a vector database."""
    if store.meta.get("scored") != (state := nearest.vectors_state(store)):
        best = banks_of(store).best_bytes()
        with store.transaction():
            store.keep_blob("best", best)
            store.meta["scored"] = state
    nearest.keep(store)
    _send(store, store.meta["store"])


def _send(store: Store, address: str) -> None:
    """Update a vector database, "local" for none; its address is stored in the index once it has answered."""
    if address != nearest.LOCAL:
        with closing(plugin(address, "open_store")(address, store, nearest.Matrix(store))) as service:
            service.send()
    with store.transaction():
        store.meta["store"] = address


def _keep_calibration(store: Store, load: "Callable[[], Embedder]") -> None:
    """Store the unrelated queries of the model: those in its folder, else generic words, which it encodes now."""
    from onepeace.hub.resolve import resolve

    kept = store.blob("calibration")
    latest = read_calibration(resolve(store.meta["model"]), store.meta["model_hash"])
    if latest is None and kept is None and "text" in store.kinds:
        latest = banks_of_words(load()).to_bytes()
    if latest is not None and latest != kept:
        with store.transaction():
            store.keep_blob("calibration", latest)
            store.meta["scored"] = ""  # the old scores are of other queries


@contextmanager
def _opened(folder: Path, name: str | None) -> Iterator[Store]:
    """Context of an index open for writing, made if there is none; a new one is deleted if it is empty at the end, for
    example if the model does not load.

    Args:
        name: the model; None = that of the index, or "tiny" for a new one.

    Raises:
        UserError: the index was built with another model, or its model cannot be found.
    """
    is_new = not is_index(folder)
    store = _create(folder, name or "tiny") if is_new else Store(folder, write=True)
    try:
        if not is_new:
            about = check_model(store, name or store.meta["model"])
            if name is not None:
                with store.transaction():
                    store.meta["model"] = about["model"]  # its location may have changed
        yield store
    finally:
        with closing(store):
            is_empty = is_new and not store.count()
        with suppress(OSError):  # it was moved meanwhile
            for path in folder.iterdir() if is_empty else ():
                if path.name != LOCK:
                    path.unlink()


def _create(folder: Path, name: str) -> Store:
    from onepeace import __version__
    from onepeace.hub.folder import read_config
    from onepeace.hub.resolve import resolve

    about = identity(name)
    model = read_config(resolve(name)).model
    modalities = " ".join(key for key in model.adapters if key in model.projections)
    for path in nearest.derived(folder):  # derived from a database that is gone
        path.unlink()
    about |= {"made_by": f"onepeace {__version__}", "modalities": modalities, "id": secrets.token_hex(8)}
    return Store.create(folder, model.embed_dim, about)
