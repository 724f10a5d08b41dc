"""`Index`: an index folder as users see it. Importing this takes no torch; a query of words alone may need none."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from onepeace.errors import UserError
from onepeace.files.walk import Unreadable
from onepeace.index.filters import Condition, compile_condition, kind_of, register
from onepeace.index.nearest import LOCAL, Matrix, read, service_of
from onepeace.index.query import Query, QueryVector, encode
from onepeace.index.ranking import RELEVANT, Banks
from onepeace.index.search import Filters, Results, Sort, search
from onepeace.index.store import DATABASE, Item, Root, Store
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.export.text_branch import TextBranch

RANKS = ("match", "raw")
"""Orders of hits: by the match, or by the cosine alone."""


class Index:
    """The vectors of files, and what is known of the files, in a folder.

    ``with Index.open("photos.index") as index: index.search("dog")``. It is open for reading, and shows the state of
    that moment; another process may write meanwhile.
    """

    def __init__(self, store: Store, model: str | None, device: str | None, dtype: str) -> None:
        self.store = store
        self._model, self._device, self._dtype = model, device, dtype
        register(store.connection, store.roots())

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
        return cls(Store(Path(folder)), model, device, dtype)

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if (service := self.__dict__.pop("_service", None)) is not None:
            service.close()
        self.store.close()

    def __len__(self) -> int:
        return self.store.count("problem IS NULL")

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, {len(self)} files, model {self.model!r})"

    @property
    def folder(self) -> Path:
        return self.store.folder

    @property
    def model(self) -> str:
        """Name of the model that made the vectors."""
        return self.store.meta["model"]

    @property
    def model_hash(self) -> str:
        return self.store.meta["model_hash"]

    @property
    def embed_dim(self) -> int:
        return self.store.embed_dim

    @property
    def kinds(self) -> tuple[str, ...]:
        """Modalities of the vectors: those that the model has."""
        return self.store.kinds

    def items(self, where: str | None = None) -> Iterator[Item]:
        """Files that have vectors, in the order in which they came, and that meet a condition (filters.py)."""
        condition = _embedded(where)
        return self.store.items(condition.sql, condition.params)

    def newest(self, top: int, offset: int = 0, where: str | None = None) -> tuple[list[Item], int]:
        """Files that have vectors, the newest first, and how many there are.

        Args:
            where: a condition (filters.py).
        """
        condition = _embedded(where)
        order = "date DESC, id LIMIT ? OFFSET ?"
        items = [*self.store.items(condition.sql, (*condition.params, top, offset), order)]
        return items, self.store.count(condition.sql, condition.params)

    def item(self, key: str | os.PathLike[str] | int) -> Item | None:
        """File of a path or an id, if it is in the index and has vectors."""
        known = ("id = ?", key) if isinstance(key, int) else ("path = ?", os.fsencode(key))
        return next(self.store.items(f"{known[0]} AND problem IS NULL", known[1:]), None)

    def problems(self) -> list[Unreadable]:
        """Files that could not be embedded, with the reasons."""
        return [Unreadable(Path(item.path), item.problem or "") for item in self.store.items("problem IS NOT NULL")]

    def roots(self) -> dict[str, Root]:
        """Folders, files, tables and shards that the index was made of, by path."""
        return {path: root for path, root in self.store.roots().items() if root.kind != "removed"}

    def stats(self) -> dict[str, Any]:
        """Numbers of files by kind, of vectors, captions, problems and bytes on the disk, and the model."""
        kinds = self.store.select("SELECT modality, count(*) FROM files WHERE problem IS NULL GROUP BY modality")
        problems = Counter(item.problem for item in self.store.items("problem IS NOT NULL"))
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return {
            "files": dict(kinds), "vectors": self.store.select("SELECT count(*) FROM vectors")[0][0],
            "captions": self.store.count("caption IS NOT NULL"), "problems": dict(problems), "bytes": size,
            "model": self.model, "model_hash": self.model_hash, "made_by": self.store.meta.get("made_by"),
            "created": self.store.meta["created"], "roots": list(self.roots()),
        }  # fmt: skip

    def means(self) -> tuple[list[Item], np.ndarray]:
        """Files that have vectors, and (n, E) float32 unit vectors: the mean of those of each file."""
        items, ids = list(self.items()), self._filters.ids
        file = np.searchsorted(ids, self.matrix.file)
        sums = np.zeros((len(ids), self.embed_dim), np.float32)
        np.add.at(sums, file, self.matrix.vectors)
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        place = {int(id_): i for i, id_ in enumerate(ids)}
        items = [item for item in items if item.id in place]
        return items, sums[[place[item.id] for item in items]]

    @cached_property
    def embedder(self) -> "Embedder":
        """Model that made the vectors; loaded on first use."""
        from onepeace.embed.embedder import load

        name = self._model or self.model
        check_model(self.store, identity(name))
        status(f"loading the model {name} ...")
        return load(name, device=self._device, dtype=self._dtype)

    @cached_property
    def matrix(self) -> Matrix:
        """All vectors."""
        return Matrix(self.store)

    @cached_property
    def banks(self) -> Banks:
        """Unrelated queries, which make the scale of the scores and the match."""
        return banks_of(self.store)

    @cached_property
    def _service(self) -> Any:
        return None if self.store.meta["store"] == LOCAL else service_of(self.store, self.matrix)

    @cached_property
    def _filters(self) -> Filters:
        return Filters(self.store, self.matrix)

    @cached_property
    def _text_branch(self) -> "TextBranch | None":
        from onepeace.export.text_branch import TextBranch

        return TextBranch.open(self.model_hash)

    def encode(self, query: str | Query) -> QueryVector:
        """The vector of a query.

        Raises:
            UserError: nothing to search for, a part that cannot be read, parts that cancel out.
        """
        return encode(query, self.store, lambda: self.embedder, lambda: self._text_branch)

    def search(
        self,
        query: str | Query,
        *,
        top: int = 10,
        offset: int = 0,
        only: str | Sequence[str] = (),
        where: str | None = None,
        sort: Sort = "match",
        rank: str = "match",
        min_match: float | None = None,
        collapse: bool = True,
    ) -> Results:
        """The files nearest to a query, best first.

        Args:
            query: words, or a `Query` of words, pictures, sounds and files of the index.
            top, offset: number of hits, after leaving out so many.
            only: kind of files, or several: image, audio, text, video.
            where: a condition on what is known of the files, such as ``"width >= 1000"`` (filters.py).
            sort: match; date (newest first) or path of the best POOL (search.py).
            rank: match, or raw for the cosine alone.
            min_match: hits below it are left out.
            collapse: near copies as one hit.

        Raises:
            UserError: a query that cannot be encoded, a condition or an option that cannot be read; Damaged.
        """
        if not (isinstance(top, Integral) and isinstance(offset, Integral) and top >= 1 and offset >= 0):
            raise UserError(f"top is {top} and offset {offset}; give whole numbers, at least 1, and 0")
        if min_match is not None and not 0 <= min_match <= 1:
            raise UserError(f"min_match is {min_match}; give a number from 0 to 1")
        for name, value, known in (("sort", sort, get_args(Sort)), ("rank", rank, RANKS)):
            if value not in known:
                raise UserError(f"{name} is {value!r}; it can be {', '.join(known)}")
        own = {kind: kind for kind in self.kinds}  # also those of a modality that is not built in
        kinds = tuple(own.get(kind) or kind_of(kind) for kind in ([only] if isinstance(only, str) else only))
        condition = None if where is None else compile_condition(where)
        query = Query.of(query)
        vector = self.encode(query)
        if not self.matrix.is_whole():
            self._forget()
        allowed = self._filters.allowed(kinds, condition, {*_own_paths(query)})
        banks = self.banks if rank == "match" else Banks({})
        hits, best = search(
            self.store, self.matrix, self._service or self.matrix, banks, vector, allowed,
            top=int(top), offset=int(offset), sort=sort, collapse=collapse, min_match=min_match,
        )  # fmt: skip
        return Results(hits, self._filters.count(allowed), None if best is None else best >= RELEVANT)

    def refresh(self) -> bool:
        """Show what another process has written since; whether that is anything.

        Raises:
            UserError: it was made anew with another model; a damaged one. What was shown is shown still.
        """
        if self.store.is_current():
            return False
        new = Store(self.folder)
        if new.meta["model_hash"] != self.model_hash:
            new.close()
            raise UserError(f"{self.folder}: made anew with another model; open it, or start the server, again")
        self.close()
        self.store = new
        register(new.connection, new.roots())
        self._forget()
        return True

    def _forget(self) -> None:
        for name in ("matrix", "banks", "_filters", "_service"):
            self.__dict__.pop(name, None)


def identity(model: str) -> dict[str, str]:
    """Name and hash of a model, and the version of the preprocessing: what its vectors depend on."""
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.processors import VERSION

    folder = resolve(model)
    name = os.path.abspath(folder) if Path(model).expanduser().is_dir() else model
    return {"model": name, "model_hash": fingerprint(folder), "preprocessing": VERSION}


def check_model(store: Store, about: dict[str, str]) -> None:
    """UserError if an index was made by another model, or by another version of the preprocessing."""
    remedies = {
        "model_hash": ("model", "leave out --model, or build a new index"),
        "preprocessing": ("preprocessing", f"build a new index, or use {store.meta.get('made_by')}"),
    }
    for key, (what, remedy) in remedies.items():
        if store.meta[key] != about[key]:
            own, other = (f"{meta['model']} ({meta[key]})" for meta in (about, store.meta))
            raise UserError(
                f"{store.folder}: made with another {what}, {other}, not {own}; vectors of both cannot be compared, so "
                f"{remedy}"
            )


def banks_of(store: Store) -> Banks:
    """Unrelated queries of the model of an index, with their scores in all of its vectors.

    Stored are the scores of the state meta["scored"]. Later vectors are added; after removals, which may have taken a
    best one, all are scored again.
    """
    banks = Banks.load(store.blob("calibration"), store.blob("best"))
    after, _, removed = store.meta.get("scored", "").partition("-")
    if removed != store.meta["removed"]:
        banks.start()
        after = "0"
    for records in read(store, int(after)):
        banks.add(records["vector"], np.array(store.kinds)[records["modality"]])
    return banks


def is_index(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the folder of an index."""
    return (Path(path) / DATABASE).is_file()


def _embedded(where: str | None) -> Condition:
    """Condition of files that have vectors and meet another one."""
    condition = Condition("1") if where is None else compile_condition(where)
    return Condition(f"problem IS NULL AND ({condition.sql})", condition.params)


def _own_paths(query: Query) -> Iterator[str]:
    """Paths of the files that a query is made of, which are not among its hits."""
    for name, value, _ in query.parts():
        if name in ("image", "audio", "like") and isinstance(value, (str, os.PathLike)):
            yield os.path.realpath(value)
            yield os.path.abspath(value)
