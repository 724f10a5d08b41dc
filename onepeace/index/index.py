"""`Index`: an index folder as users see it. Importing this takes no torch; a query of words alone may need none."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.errors import UserError
from onepeace.files.atomic import make_folder, write_atomic
from onepeace.files.walk import Unreadable
from onepeace.index.calibration import FILE as CALIBRATION
from onepeace.index.calibration import MODALITIES, Calibration
from onepeace.index.path_glob import path_glob as path_condition
from onepeace.index.path_glob import register
from onepeace.index.query import Part, encode
from onepeace.index.ranking import RANKINGS, Pool, QueryVector, statistics
from onepeace.index.search import Duplicates, Filter, Results, Sort, allowed_rows, hits_of, scorer
from onepeace.index.sources import Scan, is_shards, scan
from onepeace.index.store import DATABASE, Item, Rows, Store
from onepeace.index.where import after as after_date
from onepeace.index.where import before as before_date
from onepeace.index.where import parse

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.index.build import Report
    from onepeace.index.text_encoder import OnnxTextEncoder

LOCK = "lock"
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
        self._statistics: dict[str, np.ndarray] = {}

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

            name = model or store.meta["model"]
            check_model(store, identity(name))
            return load(name, device=device, dtype=dtype)

        return cls(store, load_model)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.store.close()

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
    def embed_dim(self) -> int:
        return self.store.embed_dim

    def items(self) -> Iterator[Item]:
        """The files that have vectors, in the order in which they came."""
        return self.store.items("problem IS NULL")

    def problems(self) -> list[Unreadable]:
        """The files that have none, with the reasons."""
        return [Unreadable(Path(item.path), item.problem or "") for item in self.store.items("problem IS NOT NULL")]

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
        if not path.is_file():
            return None
        return Calibration.load(path, embed_dim=self.embed_dim, model=self.store.meta["model_hash"])

    def _pool(self, query: QueryVector, rank: str) -> Pool:
        """What rankings know of the vectors beside themselves."""
        rows, calibration = self.rows, self.calibration
        if calibration is None:
            return Pool(rows.modality)
        needed = {modality for modality, _ in query.weights} if rank != "centred" else set(calibration.banks)
        for modality in needed & calibration.banks.keys() - self._statistics.keys():
            some = replace(calibration, banks={modality: calibration.banks[modality]})
            self._statistics[modality] = statistics(rows.vectors[rows.row], rows.modality, some)
        known = np.full((len(rows.row), len(MODALITIES), 2), np.nan, np.float32)
        for modality, values in self._statistics.items():
            code = MODALITIES.index(modality)
            known[:, code] = values[:, code]
        return Pool(rows.modality, calibration, known)

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
        allowed = allowed_rows(self.store, rows, Filter(tuple(only), tuple(conditions), frozenset(own)))
        rank = rank or ("raw" if self.calibration is None else "znorm")
        best = scorer(rows, query, self._pool(query, rank), allowed, rank)
        options: dict[str, Any] = {"top": top, "offset": offset, "sort": sort, "duplicates": duplicates}
        hits = tuple(hits_of(self.store, rows, best, min_match=min_match, **options))
        known = [hit.match for hit in hits if hit.match is not None]
        relevant = None if min_match is None or not known else max(known) >= min_match
        files = rows.file if allowed is None else rows.file[allowed]
        return Results(hits, len(np.unique(files)), relevant)


def build(
    folder: str | os.PathLike[str],
    paths: Sequence[str],
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
        only: image, audio or text: leave out the other kinds of files.
        options: ``device`` and ``dtype`` as for `onepeace.load`, and those of `Builder`.

    Raises:
        UserError: nothing found, another process is writing, the index belongs to another model, the disk is full.
    """
    found = scan([path for path in paths if not is_shards(path)], exclude)
    found.entries = [entry for entry in found.entries if only in (None, entry.item.modality)]
    shards = [path for path in paths if is_shards(path)]
    return _fill(folder, model, found, shards, {root: list(exclude) for root in found.folders}, False, **options)


def update(folder: str | os.PathLike[str], **options: Any) -> "Report":
    """Bring an index up to date with the folders it was made of: new, changed, moved and missing files.

    Args:
        options: as for `build`.

    Raises:
        UserError: as for `build`; a folder that is not there (a disk may not be mounted, so nothing is forgotten).
    """
    with Index.open(folder) as index:
        roots = {Path(path): options["exclude"] for path, options in index.store.roots().items()}
    if not roots:
        raise UserError(f"{folder}: made of no folder; name the files: onepeace index add FILES --index {folder}")
    if gone := [root for root in roots if not root.is_dir()]:
        remedy = f"if it is gone for good: onepeace index remove {gone[0]} --index {folder}"
        raise UserError(f"{gone[0]}: no such folder now; {remedy}")
    found = Scan()
    for root, exclude in roots.items():
        found.extend(scan([str(root)], exclude))
    return _fill(folder, None, found, [], roots, True, **options)


def _fill(
    folder: str | os.PathLike[str],
    model: str | None,
    found: Scan,
    shards: Sequence[str],
    roots: Mapping[Path, Sequence[str]],
    remove_missing: bool,
    *,
    device: str | None = None,
    dtype: str = "auto",
    **options: Any,
) -> "Report":
    from onepeace.index.build import Builder

    with writing(folder) as target:
        store, load = _open(target, model, device, dtype)
        try:
            builder = Builder(store, load, **options)
            builder.report.problems += found.problems
            with store.transaction() as connection:
                for root, exclude in roots.items():  # for `update`
                    row = (os.fsencode(root), json.dumps({"exclude": list(exclude)}))
                    sql = "INSERT INTO roots VALUES (?, ?) ON CONFLICT DO UPDATE SET options = excluded.options"
                    connection.execute(f"{sql} WHERE options != excluded.options", row)
            builder.add(found.entries, shards)
            if remove_missing:
                builder.remove_missing(list(roots), [entry.item.path for entry in found.entries])
            store.backup()
            _provide(store, builder.report)
        finally:
            store.close()
    return builder.report


def _provide(store: Store, report: "Report") -> None:
    """For queries without the model's folder: its calibration, and from EXPORT_FROM files on its text branch."""
    from onepeace.errors import need
    from onepeace.hub.resolve import resolve
    from onepeace.index.text_encoder import OnnxTextEncoder, export_text_encoder

    calibration = resolve(store.meta["model"]) / CALIBRATION
    if calibration.is_file():
        with write_atomic(store.folder / CALIBRATION) as temporary:
            temporary.write_bytes(calibration.read_bytes())
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


def remove(folder: str | os.PathLike[str], paths: Sequence[str]) -> int:
    """Forget files, and all files of folders; gives how many. The files themselves are not touched."""
    with writing(folder) as target:
        store = Store(target, write=True)
        try:
            ids: set[int] = set()
            for given in paths:
                path = os.path.abspath(given)
                below = (path + os.sep, path + "::")
                found = {i.id for i in store.items() if i.path in (given, path) or i.path.startswith(below)}
                if not found:
                    raise UserError(f"{given}: not in the index {folder}")
                ids |= {id_ for id_ in found if id_ is not None}
            with store.transaction() as connection:
                roots = [(os.fsencode(os.path.abspath(given)),) for given in paths]
                connection.executemany("DELETE FROM roots WHERE path = ?", roots)
            store.remove(sorted(ids))
            store.backup()
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
    if target.is_dir() and any(target.iterdir()) and not (target / DATABASE).exists() and not (target / LOCK).exists():
        raise UserError(f"{target}: a folder with other files in it, and no index; name a new folder")
    try:
        make_folder(target)
        with FileLock(target / LOCK, timeout=0):
            yield target
    except Timeout:
        raise UserError(f"{target}: another process is writing to this index; wait until it has ended") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error


def _open(folder: Path, model: str | None, device: str | None, dtype: str) -> tuple[Store, "Callable[[], Embedder]"]:
    """The store of a folder, new if there is none, and what loads the model it belongs to."""
    from onepeace import __version__
    from onepeace.embed.embedder import load

    if not (folder / DATABASE).exists():
        name = model or "tiny"
        embedder = load(name, device=device, dtype=dtype)
        about = {**identity(name), "made_by": f"onepeace {__version__}"}
        return Store.create(folder, embedder.embed_dim, about), lambda: embedder
    store = Store(folder, write=True)
    try:
        name = model or store.meta["model"]
        check_model(store, identity(name))
    except BaseException:
        store.close()
        raise
    return store, lambda: load(name, device=device, dtype=dtype)


def identity(model: str) -> dict[str, str]:
    """What vectors of a model depend on, as an index keeps it."""
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.processors import VERSION

    folder = resolve(model)
    name = str(folder) if Path(model).expanduser().is_dir() else model
    return {"model": name, "model_hash": fingerprint(folder), "preprocessing": VERSION}


def check_model(store: Store, about: dict[str, str]) -> None:
    """UserError if an index was made by another model, or by another version of the preprocessing."""
    theirs = store.meta
    for key, what in (("model_hash", "model"), ("preprocessing", "preprocessing")):
        if theirs[key] != about[key]:
            own, other = (f"{meta['model']} ({meta[key]})" for meta in (about, theirs))
            raise UserError(
                f"{store.folder}: made with another {what}, {other}, not {own}; vectors of both cannot be compared. "
                "Name the model it was made with, or build a new index"
            )
