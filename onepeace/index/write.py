"""`build`, `update` and `remove`: what changes an index. One process writes at a time."""

import os
import secrets
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import make_folder
from onepeace.files.source import scheme
from onepeace.index import nearest
from onepeace.index.builder import HOP, WINDOW, Builder, Report, score
from onepeace.index.calibrate import banks_of_words, read_calibration
from onepeace.index.index import check_model, identity, unreadable
from onepeace.index.sources import Scan, is_below, roots_of, scan
from onepeace.index.store import DATABASE, Root, Store
from onepeace.index.workers import Model, pool_of
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.workers import Pool

LOCK = "lock"
EXPORT_FROM = 1000
"""Files from which on the model's text branch is kept: writing it takes ten seconds, a query without it three."""


def build(
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    model: str | None = None,
    *,
    exclude: Sequence[str] = (),
    follow_links: bool = False,
    **options: Any,
) -> Report:
    """Make an index of files, or add files to one.

    Args:
        folder: of the index; made if it is not there.
        paths: folders, files, tables (.csv, .tsv, .jsonl) and webdataset shards (.tar, .tar.gz; patterns with braces).
        model: a name as `onepeace.load` takes it; None = the model of the index, or "tiny" for a new one.
        exclude: patterns as in a .gitignore file.
        follow_links: follow links that lead out of the folders.
        options: ``device``, ``dtype`` (as for `onepeace.load`), ``batch_size``, ``progress`` (False = silent);
            ``window`` and ``hop``, seconds of long sounds that have a vector of their own and from one to the next;
            ``workers``, processes that embed; ``engine``, a module of onepeace.plugins that starts them; ``store``, an
            address of a service that is asked which vectors are near, "milvus://HOST". An index keeps window, hop and
            store.

    Raises:
        UserError: nothing found, another process is writing, the index belongs to another model, the disk is full.
    """
    given = roots_of(paths, exclude, follow_links)
    with writing(folder) as target:
        known = {}
        if (target / DATABASE).exists():
            with closing(Store(target)) as store:
                known = store.roots()
        found = scan(given, [root.path for root in known.values() if root.kind == "removed"])
        shards = [known.get(root.path, root) for root in given if root.kind == "shard"]
        is_empty = not shards and all(entry.item.problem for entry in found.entries.values())
        if is_empty and not (target / DATABASE).exists():
            raise UsageError(_nothing(paths, found))
        return _fill(target, model, found, shards, given, **options)


def update(folder: str | os.PathLike[str], model: str | None = None, **options: Any) -> Report:
    """Bring an index up to date with the paths it was made of: new, changed, moved and missing files.

    Args:
        model, options: as for `build`.

    Raises:
        UserError: as for `build`; a folder that is not there, or holds nothing any more: a disk may not be mounted, so
            nothing is forgotten.
    """
    with writing(folder) as target:
        with closing(Store(target)) as store:  # says so if there is none
            known = store.roots()
        roots = [root for root in known.values() if root.kind != "removed"]
        if not roots:
            raise UserError(f"{folder}: made of no files; name some: onepeace index build {folder} FILES")
        gone = [root for root in roots if not scheme(root.path) and not os.path.lexists(root.path)]
        for root in gone:
            if root.kind == "folder" or not os.path.isdir(os.path.dirname(root.path)):
                raise UserError(f"{root.path}: not there now; {_remedy(folder, root)}")
        present = [root for root in roots if root not in gone]
        found = scan(present, [root.path for root in known.values() if root.kind == "removed"])
        _refuse_emptied(target, present, found)
        shards = [root for root in present if root.kind == "shard"]
        return _fill(target, model, found, shards, (), gone, remove_missing=True, **options)


def remove(folder: str | os.PathLike[str], paths: Sequence[str | os.PathLike[str]]) -> int:
    """Forget files, and all files of folders. The files themselves are not touched; `update` leaves them out from now
    on, and `build` with their own path takes them in again.

    Returns:
        The number of files.

    Raises:
        UserError: a path that is not in the index, or another process is writing.
    """
    with writing(folder) as target, closing(Store(target, write=True)) as store:
        known = store.roots()
        ids: set[int] = set()
        removed = []
        for each in paths:
            given = os.fspath(each)
            path = given if scheme(given) else os.path.abspath(given)
            found = {item.id for item in store.items() if item.id is not None and is_below(item.path, {path})}
            if not found and path not in known:
                raise UserError(f"{given}: not in the index {folder}")
            ids |= found
            removed.append(Root(path, "removed"))
        with store.transaction():
            store.keep_roots(removed)
            store.remove(sorted(ids))
        _finish(store)
        return len(ids)


@contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """The folder of an index while no other process writes to it; made if it is not there.

    Raises:
        UserError: another process is writing; it is a folder of something else.
    """
    from filelock import FileLock, Timeout

    target = Path(folder)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target}: is a file; name a folder")
    lock = FileLock(target / LOCK, timeout=0)
    try:
        is_new = not target.exists()
        if not is_new and not any((target / name).exists() for name in (DATABASE, LOCK)) and any(target.iterdir()):
            raise UserError(f"{target}: a folder with other files in it, and no index; name a new folder")
        make_folder(target)
        lock.acquire()
        for leftover in target.glob(".*.tmp*"):  # half a file of a run that was killed
            leftover.unlink(missing_ok=True)
    except Timeout:
        raise UserError(f"{target}: another process is writing to this index; wait until it has ended") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    try:
        yield target
    finally:
        lock.release()
        with suppress(OSError):  # it was moved meanwhile
            if is_new and {path.name for path in target.iterdir()} == {LOCK}:  # nothing has come of it
                (target / LOCK).unlink()
                target.rmdir()


def _nothing(paths: Sequence[str | os.PathLike[str]], found: Scan) -> str:
    places = ", ".join(os.fspath(path) for path in paths)
    items = [entry.item for entry in found.entries.values()]
    problems = [*found.problems, *(unreadable(item.path, item.problem or "") for item in items)]
    first = f"; {len(problems)} cannot be read, as {problems[0].path}: {problems[0].reason}" if problems else ""
    others = ", ".join(f"{name} {count}" for name, count in found.others.most_common(5))
    return f"no image, audio, video or text files in {places}{first}{f'; others: {others}' * bool(others)}"


def _remedy(folder: str | os.PathLike[str], root: Root) -> str:
    return f"if it is gone for good: onepeace index remove {folder} {shlex.quote(root.path)}"


def _refuse_emptied(folder: Path, roots: Sequence[Root], found: Scan) -> None:
    """UserError for a folder without any file of which the index has some: where a disk is mounted, if it is."""
    with closing(Store(folder)) as store:
        for root in roots:
            below = (root.path.rstrip(os.sep) + os.sep,)
            if root.kind != "folder" or any(path.startswith(below) for path in found.entries):
                continue
            count = sum(item.path.startswith(below) for item in store.items("problem IS NULL"))
            if count:
                raise UserError(f"{root.path}: empty now, and {count} files of it are known; {_remedy(folder, root)}")


def _fill(
    folder: Path,
    model: str | None,
    found: Scan,
    shards: Sequence[Root],
    new_roots: Sequence[Root],
    gone: Sequence[Root] = (),
    *,
    remove_missing: bool = False,
    device: str | None = None,
    dtype: str = "auto",
    engine: str | None = None,
    workers: int | None = None,
    store: str | None = None,
    window: float | None = None,
    hop: float | None = None,
    batch_size: int = 32,
    progress: bool | None = None,
) -> Report:
    """Embed what was found; ``folder`` is held for writing."""

    def load_model(name: str) -> "Embedder | Pool":
        chosen = Model(name, device, dtype)
        if progress is not False:
            status(f"loading the model {name} ...")
        several = pool_of(chosen, engine, workers)
        return chosen.load() if several is None else stack.enter_context(closing(several))

    with ExitStack() as stack:
        opened, load = _open(folder, model, load_model, {"window": window, "hop": hop})
        stack.callback(opened.close)
        if store not in (None, opened.meta["store"]):
            _choose_service(opened, store)
        _keep_calibration(opened, load)
        builder = Builder(opened, load, batch_size, progress)
        builder.report.problems += found.problems
        builder.report.other_kinds += found.others
        known = opened.roots()
        roots = [known.get(root.path, root) if root.kind == "shard" else root for root in new_roots]
        if news := [root for root in roots if root != known.get(root.path)]:
            with opened.transaction():  # first, so that `update` goes on with what a stop leaves open
                opened.keep_roots(news)
        builder.add(found.entries.values(), shards)
        if remove_missing:
            builder.remove_missing(found)
            if gone:
                with opened.transaction():
                    opened.keep_roots([], [root.path for root in gone])
        if "text" in opened.meta["modalities"].split() and opened.count("problem IS NULL") >= EXPORT_FROM:
            from onepeace.export.text_branch import keep_text_branch

            keep_text_branch(opened.meta["model"], opened.meta["model_hash"])
        _finish(opened)
    return builder.report


def _finish(store: Store) -> None:
    """Bring what is derived from the vectors up to date."""
    score(store)
    nearest.keep(store)
    if store.meta["store"] != nearest.LOCAL:
        with closing(nearest.service_of(store, nearest.Matrix(store))) as service:
            service.send()


def _choose_service(store: Store, address: str) -> None:
    """Ask another service which vectors are near from now on, "local" for none, if it answers: of a wrong address every
    later command would fail."""
    if address != nearest.LOCAL:
        with closing(nearest.service_of(store, nearest.Matrix(store), address)) as service:
            service.send()
    with store.transaction():
        store.meta["store"] = address


def _keep_calibration(store: Store, load: "Callable[[], Embedder | Pool]") -> None:
    """Keep the unrelated queries of the model with an index: those of its folder, or else generic words, which it
    encodes now."""
    from onepeace.hub.resolve import resolve

    kept = store.blob("calibration")
    latest = read_calibration(resolve(store.meta["model"]), store.meta["model_hash"])
    if latest is None and kept is None:
        latest = banks_of_words(load()).to_bytes()
    if latest is not None and latest != kept:
        with store.transaction():
            store.keep_blob("calibration", latest)
            store.meta["scored"] = ""  # that was of other queries


def _open(
    folder: Path,
    model: str | None,
    load: "Callable[[str], Embedder | Pool]",
    cut: Mapping[str, float | None],
) -> "tuple[Store, Callable[[], Embedder | Pool]]":
    """The store of a folder, new if there is none, and what loads the model it belongs to.

    Args:
        load: gives the model of a name.
        cut: window and hop of long sounds, where they are given.
    """
    from onepeace import __version__
    from onepeace.hub.folder import read_config
    from onepeace.hub.resolve import resolve

    if not (folder / DATABASE).exists():
        name = model or "tiny"
        embedder = load(name)
        projected = read_config(resolve(name)).model.projections
        about = {**identity(name), "made_by": f"onepeace {__version__}"}
        about |= {"modalities": " ".join(key for key in embedder.modalities if key in projected)}
        about |= {"window": str(cut["window"] or WINDOW), "hop": str(cut["hop"] or HOP), "id": secrets.token_hex(8)}
        for path in nearest.derived(folder):  # of a database that is gone
            path.unlink()
        return Store.create(folder, embedder.embed_dim, about), lambda: embedder
    store = Store(folder, write=True)
    try:
        name = model or store.meta["model"]
        about = _identity(store, name)
        check_model(store, about)
        for key, value in cut.items():
            if value is not None and value != float(store.meta[key]):
                raise UserError(f"{folder}: made with a {key} of {float(store.meta[key]):g} s, not {value:g} s")
        if model is not None:
            with store.transaction():
                store.meta["model"] = about["model"]  # it may lie elsewhere now
    except BaseException:
        store.close()
        raise
    return store, lambda: load(name)


def _identity(store: Store, name: str) -> dict[str, str]:
    try:
        return identity(name)
    except UserError as error:
        made = f"the index {store.folder} was made with {store.meta['model']}"
        raise UserError(f"{error}; {made}, see --model") from error
