"""`Index`: an index folder as users see it. Importing this takes no torch; a query of words alone may need none."""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import make_folder, write_atomic
from onepeace.files.source import scheme
from onepeace.files.walk import Unreadable
from onepeace.index.calibration import FILE as CALIBRATION
from onepeace.index.calibration import MODALITIES, Calibration
from onepeace.index.candidates import Candidates
from onepeace.index.milvus import Mirror, choose_store, mirrored, reading
from onepeace.index.path_glob import path_glob as path_condition
from onepeace.index.path_glob import register
from onepeace.index.query import Part, encode
from onepeace.index.ranking import RANKINGS
from onepeace.index.search import Duplicates, Filter, Filters, Results, Sort, hits_of
from onepeace.index.sources import MADE_OF, Root, Scan, is_below, roots_of, scan, unreadable
from onepeace.index.spread import Model, Spread, spread
from onepeace.index.store import DATABASE, Item, Rows, Store
from onepeace.index.where import after as after_date
from onepeace.index.where import before as before_date
from onepeace.index.where import parse

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.build import Report
    from onepeace.index.text_encoder import OnnxTextEncoder

LOCK = "lock"
IMPORTED = "imported"
"""In place of the hash of a model that is known by its name only."""
TEXT_ENCODER = "model"
"""Folder of what reads words without torch."""
EXPORT_FROM = 1000
"""Files from which on it is made."""


class Index:
    """The vectors of files, and what is known of the files, in a folder.

    ``with Index.open("photos.index") as index: ...``. It is open for reading, and shows the state of that moment;
    another process may write meanwhile.
    """

    def __init__(self, store: Store, load: "Callable[[], Embedder]") -> None:
        self.store = store
        self._load = load

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ) -> "Index":
        """An index that is there.

        Args:
            model: for queries, where the model it was made with has another name here.
            device, dtype: see `onepeace.load`; the model is loaded with the first query that needs it.

        Raises:
            UserError: no index, a damaged one, or one of another format.
        """
        store = Store(Path(folder))

        def load_model() -> "Embedder":
            from onepeace.embed.embedder import load

            refuse_imported(store)
            name = model or store.meta["model"]
            check_model(store, identity(name))
            return load(name, device=device, dtype=dtype)

        return cls(store, load_model)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._close_mirror()
        self.store.close()

    def _close_mirror(self) -> None:
        if mirror := self.__dict__.pop("mirror", None):
            mirror.close()

    def __len__(self) -> int:
        """Files that have vectors."""
        return self.store.count("problem IS NULL")

    def __repr__(self) -> str:
        return f"Index({str(self.store.folder)!r}, {len(self)} files, model {self.model!r})"

    @property
    def model(self) -> str:
        """The name of the model that made the vectors."""
        return self.store.meta["model"]

    @property
    def is_imported(self) -> bool:
        """Whether its vectors came from elsewhere, and there is no model here to make others like them."""
        return self.store.meta["model_hash"] == IMPORTED

    @property
    def embed_dim(self) -> int:
        return self.store.embed_dim

    def items(self) -> Iterator[Item]:
        """The files that have vectors, in the order in which they came."""
        return self.store.items("problem IS NULL")

    def problems(self) -> list[Unreadable]:
        """The files that have none, with the reasons."""
        return [unreadable(item.path, item.problem or "") for item in self.store.items("problem IS NOT NULL")]

    @cached_property
    def rows(self) -> Rows:
        """All vectors, and what they belong to."""
        return self.store.rows()

    @cached_property
    def embedder(self) -> "Embedder":
        """The model that made the vectors."""
        return self._load()

    @cached_property
    def calibration(self) -> Calibration | None:
        """What makes one scale of the scores; None where the model has none."""
        path = self.store.folder / CALIBRATION
        if not path.is_file() or len(self.store.kinds) > len(MODALITIES):
            return None
        return Calibration.load(path, embed_dim=self.embed_dim, model=self.store.meta["model_hash"])

    @cached_property
    def candidates(self) -> Candidates:
        """The vectors, to be ranked."""
        return Candidates(self.store.folder, self.store.meta, self.rows, self.calibration)

    @cached_property
    def mirror(self) -> Mirror | None:
        """The collection in Milvus that is asked which vectors are near; None for an index without one."""
        return reading(self.store)

    @cached_property
    def _filters(self) -> Filters:
        return Filters(self.store, self.rows)

    def _text_encoder(self) -> "OnnxTextEncoder | None":
        from onepeace.index.text_encoder import OnnxTextEncoder

        return OnnxTextEncoder.open(self.store.folder / TEXT_ENCODER, self.store.meta["model_hash"])

    def search(
        self,
        parts: Sequence[Part],
        *,
        top: int = 10,
        offset: int = 0,
        only: Sequence[str] = (),
        path_glob: str | None = None,
        after: str | None = None,
        before: str | None = None,
        where: str | None = None,
        sort: Sort = "match",
        rank: str | None = None,
        min_match: float | None = None,
        duplicates: Duplicates = "collapse",
        nearest: str = "auto",
    ) -> Results:
        """The files nearest to a query, best first.

        Args:
            parts: what is searched for; several are one query, their weighted sum.
            top, offset: so many hits, after leaving out so many.
            only: kinds of files: some of image, audio, text, video.
            path_glob, after, before, where: which files may be found (where.py).
            sort: match; date (newest first) or path, of the hits that reach ``min_match``.
            rank: a key of RANKINGS (ranking.py); None = znorm, or raw where there is no calibration.
            min_match: probability below which a hit counts as not relevant.
            duplicates: near copies as one hit, or each.
            nearest: search structure, a key of NEAREST (nearest.py), where it is kept and the ranking allows it; "auto"
                takes the one that is there.

        Raises:
            UserError: a query that cannot be encoded, a filter that cannot be read.
        """
        if top < 1 or offset < 0:
            raise UserError(f"top is {top} and offset {offset}; give at least 1, and 0")
        if rank is not None and rank not in RANKINGS:
            raise UserError(f"rank is {rank!r}; it can be {', '.join(RANKINGS)}")
        conditions = []
        if where is not None:
            conditions.append(parse(where))
        conditions += [read(date) for read, date in ((after_date, after), (before_date, before)) if date is not None]
        if path_glob is not None:
            register(self.store.connection)
            conditions.append(path_condition(path_glob, [os.fsencode(root) for root in self.store.roots()]))
        query = encode(parts, self.store, lambda: self.embedder, self._text_encoder)
        own = {os.path.realpath(part.value) for part in parts if isinstance(part.value, (str, os.PathLike))}
        own |= {os.path.abspath(part.value) for part in parts if isinstance(part.value, (str, os.PathLike))}
        rows = self.rows
        allowed = self._filters.allowed(Filter(tuple(only), tuple(conditions), frozenset(own)))
        rank = rank or ("raw" if self.calibration is None else "znorm")
        if self.mirror is None or nearest != "auto":
            best = self.candidates.best(query, rank, allowed, nearest)
        else:
            best = self.mirror.best(self.candidates, query, rank, allowed)
        options: dict[str, Any] = {"top": top, "offset": offset, "sort": sort, "duplicates": duplicates}
        hits = tuple(hits_of(self.store, rows, best, min_match=min_match, **options))
        known = [hit.match for hit in hits if hit.match is not None]
        relevant = None if min_match is None or not known else max(known) >= min_match
        return Results(hits, self._filters.count(allowed), relevant)

    def add(self, paths: Sequence[str | os.PathLike[str]], **options: Any) -> "Report":
        """Embed files into the index, which shows them then; see `build`."""
        self._close_mirror()  # a file of Milvus Lite can be open once only
        report = build(self.store.folder, paths, **options)
        self.close()
        self.store = Store(self.store.folder)
        for name in ("rows", "calibration", "candidates", "_filters"):
            self.__dict__.pop(name, None)
        return report


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
    if store.count("problem IS NULL") < EXPORT_FROM or OnnxTextEncoder.open(folder, model_hash) is not None:
        return
    try:
        need("onnxruntime", "onnx")
        need("onnxscript", "onnx")
    except UserError:
        return
    from onepeace.embed.embedder import load

    start = time.perf_counter()
    embedder = load(store.meta["model"], device="cpu", dtype="float32", modalities=["text"])
    export_text_encoder(embedder, folder, model_hash=model_hash)
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


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of an index."""
    return (Path(path) / DATABASE).is_file()


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
        if not is_new and not _is_index(target) and any(target.iterdir()):
            raise UserError(f"{target}: a folder with other files in it, and no index; name a new folder")
        make_folder(target)
        lock.acquire()
    except Timeout:
        raise UserError(f"{target}: another process is writing to this index; wait until it has ended") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    try:
        yield target
    finally:
        lock.release()
        if is_new and {path.name for path in target.iterdir()} == {LOCK}:  # nothing has come of it
            with suppress(OSError):
                (target / LOCK).unlink()
                target.rmdir()


def _is_index(folder: Path) -> bool:
    return (folder / DATABASE).exists() or (folder / LOCK).exists()


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
            store.meta["model"] = about["model"]
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


def identity(model: str) -> dict[str, str]:
    """What vectors of a model depend on, as an index keeps it."""
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.processors import VERSION

    folder = resolve(model)
    name = os.path.abspath(folder) if Path(model).expanduser().is_dir() else model
    return {"model": name, "model_hash": fingerprint(folder), "preprocessing": VERSION}


def refuse_imported(store: Store) -> None:
    """UserError for an index of vectors that were imported: there is no model here to make others like them."""
    if store.meta["model_hash"] == IMPORTED:
        raise UserError(
            f"{store.folder}: holds vectors of {store.meta['model']} that were imported, and onepeace cannot run that "
            "model; search with --like FILE of the index, or with --vectors of words; add with: onepeace index import"
        )


def check_model(store: Store, about: dict[str, str]) -> None:
    """UserError if an index was made by another model, or by another version of the preprocessing."""
    theirs = store.meta
    remedies = {
        "model_hash": ("model", "leave out --model, or build a new index"),
        "preprocessing": ("preprocessing", f"build a new index, or use {theirs.get('made_by')}"),
    }
    for key, (what, remedy) in remedies.items():
        if theirs[key] != about[key]:
            own, other = (f"{meta['model']} ({meta[key]})" for meta in (about, theirs))
            raise UserError(
                f"{store.folder}: made with another {what}, {other}, not {own}; vectors of both cannot be compared, so "
                f"{remedy}"
            )
