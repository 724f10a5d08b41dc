"""What the commands that change an index do: `build`, `update`, `remove`."""

import logging
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UsageError, UserError, one_line
from onepeace.files.atomic import write_atomic
from onepeace.files.source import scheme
from onepeace.index.calibration import FILE as CALIBRATION
from onepeace.index.identity import check_model, identity, refuse_imported
from onepeace.index.index import TEXT_ENCODER, Index
from onepeace.index.lock import writing
from onepeace.index.milvus import choose_store, mirrored
from onepeace.index.nearest import check
from onepeace.index.sources import MADE_OF, Root, Scan, is_below, roots_of, scan, unreadable
from onepeace.index.spread import Model, Spread, spread
from onepeace.index.store import DATABASE, Store

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.build import Report

log = logging.getLogger(__name__)

EXPORT_FROM = 1000
"""Files from which on the text branch is written beside the vectors."""


def build(
    folder: str | os.PathLike[str],
    paths: Sequence[str | os.PathLike[str]],
    model: str | None = None,
    *,
    exclude: Sequence[str] = (),
    only: str | None = None,
    **options: Any,
) -> "Report":
    """Make an index of files, or add files to one.

    Args:
        folder: of the index; made if it is not there.
        paths: folders, files, tables (.csv, .tsv, .jsonl) and webdataset shards (.tar, .tar.gz; patterns with braces).
        model: a name as `onepeace.load` takes it; None = the model of the index, or "tiny" for a new one.
        exclude: patterns as in a .gitignore file.
        only: image, audio, text or video: leave out the other kinds of files; a video has pictures and a sound.
        options: ``device`` and ``dtype`` as for `onepeace.load`; ``workers`` and ``engine``, see `spread`; ``nearest``,
            the search structure (nearest.py, "auto": none for few vectors); ``store``, see `milvus.place_of`; and those
            of `Builder`. An index keeps the ``window``, ``hop`` and ``store`` it was made with, the last until another
            is given.

    Raises:
        UserError: nothing found, another process is writing, the index belongs to another model, the disk is full.
    """
    given = roots_of(paths, exclude)
    with writing(folder) as target:
        known = _roots(target)
        found = scan(given, [root.path for root in known if root.kind == "removed"])
        if only is not None:
            entries = {path: (one, one.item.modality) for path, one in found.entries.items()}
            found.entries = {
                path: one for path, (one, kind) in entries.items() if only in (kind, *MADE_OF.get(kind, ()))
            }
        shards = _with_states([root for root in given if root.kind == "shard"], known)
        is_empty = not shards and all(entry.item.problem for entry in found.entries.values())
        if is_empty and not (target / DATABASE).exists():
            places = ", ".join(os.fspath(path) for path in paths)
            items = [entry.item for entry in found.entries.values()]
            problems = [*found.problems, *(unreadable(item.path, item.problem or "") for item in items)]
            first = f"; {len(problems)} cannot be read, as {problems[0].path}: {problems[0].reason}" if problems else ""
            raise UsageError(f"no {only or 'image, audio or text'} files in {places}{first}")
        return _fill(target, model, found, shards, given, **options)


def update(folder: str | os.PathLike[str], model: str | None = None, **options: Any) -> "Report":
    """Bring an index up to date with the paths it was made of: new, changed, moved and missing files.

    Args:
        model, options: as for `build`.

    Raises:
        UserError: as for `build`; a folder that is not there, or holds nothing any more: a disk may not be mounted, so
            nothing is forgotten.
    """
    with writing(folder) as target:
        with Index.open(target) as index:  # says so if there is none
            refuse_imported(index.store)
        known = _roots(target)
        roots = [root for root in known if root.kind != "removed"]
        if not roots:
            raise UserError(f"{folder}: made of no files; name some: onepeace index add FILES --index {folder}")
        gone = [root for root in roots if not scheme(root.path) and not os.path.lexists(root.path)]
        for root in gone:
            if root.kind == "folder" or not os.path.isdir(os.path.dirname(root.path)):
                raise UserError(f"{root.path}: not there now; {_remedy(folder, root)}")
        present = [root for root in roots if root not in gone]
        found = scan(present, [root.path for root in known if root.kind == "removed"])
        _refuse_emptied(folder, present, found)
        shards = [root for root in present if root.kind == "shard"]
        return _fill(target, model, found, shards, (), gone, remove_missing=True, **options)


def _remedy(folder: str | os.PathLike[str], root: Root) -> str:
    return f"if it is gone for good: onepeace index remove {shlex.quote(root.path)} --index {folder}"


def _refuse_emptied(folder: str | os.PathLike[str], roots: Sequence[Root], found: Scan) -> None:
    """UserError for a folder without any file of which the index has some: where a disk is mounted, if it is."""
    with Index.open(folder) as index:
        for root in roots:
            below = (root.path.rstrip(os.sep) + os.sep,)
            if root.kind != "folder" or any(path.startswith(below) for path in found.entries):
                continue
            count = sum(item.path.startswith(below) for item in index.items())
            if count:
                raise UserError(f"{root.path}: empty now, and {count} files of it are known; {_remedy(folder, root)}")


def _with_states(shards: Sequence[Root], known: Sequence[Root]) -> list[Root]:
    """Shards that were given, with the state in which the index has them."""
    by_path = {root.path: root for root in known if root.kind == "shard"}
    return [by_path.get(shard.path, shard) for shard in shards]


def _roots(folder: Path) -> list[Root]:
    """What an index was made of; of a new one nothing."""
    if not (folder / DATABASE).exists():
        return []
    with Index.open(folder) as index:
        rows = index.store.connection.execute("SELECT path, options FROM roots ORDER BY path")
        return [Root.from_row(*row) for row in rows]


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
    engine: str = "local",
    workers: int | None = None,
    store: str | None = None,
    window: float | None = None,
    hop: float | None = None,
    nearest: str = "auto",
    **options: Any,
) -> "Report":
    """Embed what was found; ``folder`` is held for writing."""
    from onepeace.index.build import Builder

    check(nearest)

    def load_model(name: str) -> "Embedder | Spread":
        loaded = Model(name, device, dtype)
        several = spread(loaded, engine, workers)
        return loaded.load() if several is None else stack.enter_context(closing(several))

    with ExitStack() as stack:
        opened, load = _open(folder, model, load_model, {"window": window, "hop": hop})
        stack.callback(opened.close)
        if store is not None:
            choose_store(opened, store)
        mirror = stack.enter_context(mirrored(opened))
        if mirror is not None:
            options["written"] = mirror.append
        options |= {name: float(opened.meta[name]) for name in ("window", "hop")}
        builder = Builder(opened, load, modalities=opened.meta["modalities"].split(), **options)
        builder.report.problems += found.problems
        known = {root.path: root for root in _roots(folder)}
        states = _with_states(new_roots, list(known.values()))
        if news := [root.to_row() for root in states if root != known.get(root.path)]:
            with opened.transaction() as connection:  # first, so that `update` goes on with what a stop leaves open
                connection.executemany("INSERT OR REPLACE INTO roots VALUES (?, ?)", news)
        builder.add(found.entries.values(), shards)
        if remove_missing:
            builder.remove_missing(found)
            if gone:
                _forget(opened, gone)
        opened.backup()
        _provide(opened, builder.report, nearest)
    return builder.report


def _provide(store: Store, report: "Report", nearest: str) -> None:
    """For queries: the model's calibration, the search structures, and from EXPORT_FROM files on its text branch."""
    from onepeace.errors import need
    from onepeace.hub.resolve import resolve
    from onepeace.index.text_encoder import OnnxTextEncoder, export_text_encoder

    calibration = resolve(store.meta["model"]) / CALIBRATION
    if calibration.is_file():
        with write_atomic(store.folder / CALIBRATION) as temporary:
            temporary.write_bytes(calibration.read_bytes())
    start = time.perf_counter()
    with Index.open(store.folder) as index:
        index.candidates.keep(nearest)
    report.seconds["structure"] += time.perf_counter() - start
    folder, model_hash = store.folder / TEXT_ENCODER, store.meta["model_hash"]
    if "text" not in store.meta["modalities"].split():
        return
    if store.count("problem IS NULL") < EXPORT_FROM or OnnxTextEncoder.open(folder, model_hash) is not None:
        return
    try:
        need("onnxruntime", "onnx")
        need("onnxscript", "onnx")
    except UserError:
        return
    from onepeace.embed.embedder import load

    start = time.perf_counter()
    try:
        embedder = load(store.meta["model"], device="cpu", dtype="float32", modalities=["text"])
        export_text_encoder(embedder, folder, model_hash=model_hash)
    except (UserError, OSError) as error:  # the files only save time
        log.warning("%s: no text encoder is kept (%s); queries of words load the model", folder, one_line(error))
    report.seconds["export"] += time.perf_counter() - start


def _forget(store: Store, roots: Sequence[Root]) -> None:
    with store.transaction() as connection:
        connection.executemany("DELETE FROM roots WHERE path = ?", [(os.fsencode(root.path),) for root in roots])


def remove(folder: str | os.PathLike[str], paths: Sequence[str | os.PathLike[str]]) -> int:
    """Forget files, and all files of folders; gives how many. The files themselves are not touched, and `update` leaves
    them out from now on; `build` with their own path takes them in again."""
    with writing(folder) as target:
        store = Store(target, write=True)
        try:
            known = {root.path for root in _roots(target)}
            ids: set[int] = set()
            roots = []
            for each in paths:
                given = os.fspath(each)
                path = given if scheme(given) else os.path.abspath(given)
                found = {item.id for item in store.items() if item.id is not None and is_below(item.path, {path})}
                if not found and path not in known:
                    raise UserError(f"{given}: not in the index {folder}")
                ids |= found
                roots.append(Root(path, "removed").to_row())
            with store.transaction() as connection:
                connection.executemany("INSERT OR REPLACE INTO roots VALUES (?, ?)", roots)
            store.remove(sorted(ids))
            store.backup()
            with mirrored(store):
                return len(ids)
        finally:
            store.close()


def _open(
    folder: Path,
    model: str | None,
    load: "Callable[[str], Embedder | Spread]",
    cut: Mapping[str, float | None],
) -> tuple[Store, "Callable[[], Embedder | Spread]"]:
    """The store of a folder, new if there is none, and what loads the model it belongs to.

    Args:
        load: gives the model of a name.
        cut: window and hop of long sounds, where they are given.
    """
    from onepeace import __version__
    from onepeace.hub.folder import read_config
    from onepeace.hub.resolve import resolve
    from onepeace.index.build import HOP, WINDOW

    if not (folder / DATABASE).exists():
        name = model or "tiny"
        embedder = load(name)
        projected = read_config(resolve(name)).model.projections
        about = {**identity(name), "made_by": f"onepeace {__version__}"}
        about |= {"modalities": " ".join(key for key in embedder.modalities if key in projected)}
        about |= {"window": str(cut["window"] or WINDOW), "hop": str(cut["hop"] or HOP)}
        return Store.create(folder, embedder.embed_dim, about), lambda: embedder
    store = Store(folder, write=True)
    try:
        refuse_imported(store)
        name = model or store.meta["model"]
        about = _identity(store, name)
        check_model(store, about)
        if model is not None and about["model"] != store.meta["model"]:  # it lies elsewhere now
            with store.transaction() as connection:
                connection.execute("UPDATE meta SET value = ? WHERE key = 'model'", (about["model"],))
        for key, value in cut.items():
            if value is not None and value != float(store.meta[key]):
                raise UserError(f"{folder}: made with a {key} of {float(store.meta[key]):g} s, not {value:g} s")
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
