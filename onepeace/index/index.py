"""`Index`: an index folder as users see it. Importing this takes no torch; a query of words alone may need none."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onepeace.errors import UserError
from onepeace.files.walk import Unreadable
from onepeace.index.filters import Condition, compile_condition, kind_of, register
from onepeace.index.nearest import LOCAL, Matrix, read, service_of
from onepeace.index.query import Query, encode
from onepeace.index.ranking import RELEVANT, Banks
from onepeace.index.search import Hit, Results, grouped, mask_of, ranked, rows_of
from onepeace.index.store import DATABASE, Damaged, Item, Root, Store
from onepeace.progress import status

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder
    from onepeace.export.text_branch import TextBranch

POOL = 200
"""Best files that are sorted by date or path, unless more hits are asked for."""
CANDIDATES = 4
"""Vectors fetched per hit wanted; several may be of one file."""
REMEMBERED = 16
"""Filters whose masks are cached."""


class Index:
    """The vectors of files, and what is known of the files, in a folder.

    ``with Index.open("photos.index") as index: index.search("dog")``. It is open for reading, and shows the state of
    that moment; another process may write meanwhile.

    Attributes:
        folder: where it lies.
        model, model_hash: name and hash of the model that made the vectors.
        embed_dim: numbers of a vector.
        kinds: modalities of the vectors: those that the model has.
    """

    def __init__(self, store: Store, model: str | None, device: str | None, dtype: str) -> None:
        self._model, self._device, self._dtype = model, device, dtype
        self._show(store)

    @classmethod
    def open(
        cls, folder: str | os.PathLike[str], *, model: str | None = None, device: str | None = None, dtype: str = "auto"
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
        self.forget()
        self.store.close()

    def __len__(self) -> int:
        return self.store.count("problem IS NULL")

    def __repr__(self) -> str:
        return f"Index({str(self.folder)!r}, {len(self)} files, model {self.model!r})"

    def items(self, where: str | None = None) -> Iterator[Item]:
        """Files that have vectors, in the order in which they came, and that meet a condition (filters.py)."""
        condition = _embedded(where)
        return self.store.items(condition.sql, condition.params)

    def newest(self, top: int, offset: int = 0, where: str | None = None) -> tuple[list[Item], int]:
        """Files that have vectors and meet a condition, the newest first, and how many there are."""
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
        problems = Counter(problem.reason for problem in self.problems())
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        return {
            "files": dict(kinds), "vectors": self.store.select("SELECT count(*) FROM vectors")[0][0],
            "captions": self.store.count("caption IS NOT NULL"), "problems": dict(problems), "bytes": size,
            "model": self.model, "model_hash": self.model_hash, "made_by": self.store.meta.get("made_by"),
            "created": self.store.meta["created"], "roots": list(self.roots()),
        }  # fmt: skip

    def means(self) -> tuple[list[Item], np.ndarray]:
        """Files that have vectors, and (n, E) float32 unit vectors: the mean of those of each file."""
        items, (ids, places) = {item.id: item for item in self.items()}, self.matrix.files
        sums = np.zeros((len(ids), self.embed_dim), np.float32)
        np.add.at(sums, places, self.matrix.vectors)
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
        known = [id_ in items for id_ in ids.tolist()]
        return [items[id_] for id_ in ids[known].tolist()], sums[known]

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
    def service(self) -> Any:
        """Service that is asked which vectors are near (nearest.py); None = there is none."""
        return None if self.store.meta["store"] == LOCAL else service_of(self.store, self.matrix)

    @cached_property
    def text_branch(self) -> "TextBranch | None":
        """Reads words without the model, if it is there."""
        from onepeace.export.text_branch import TextBranch

        return TextBranch.open(self.model_hash)

    @cached_property
    def mask(self) -> "Callable[[tuple[str, ...], Condition | None], np.ndarray | None]":
        """Rows of the matrix that filters allow: `mask_of`, cached."""
        return lru_cache(REMEMBERED)(partial(mask_of, self.store, self.matrix))

    def search(
        self,
        query: str | Query,
        *,
        top: int = 10,
        offset: int = 0,
        only: str | Sequence[str] = (),
        where: str | None = None,
        sort: Literal["match", "date", "path"] = "match",
        rank: Literal["match", "raw"] = "match",
        min_match: float | None = None,
        collapse: bool = True,
    ) -> Results:
        """The files nearest to a query, best first.

        Args:
            query: words, or a `Query` of words, pictures, sounds and files of the index.
            top, offset: number of hits, after leaving out so many.
            only: kind of files, or several: image, audio, text, video.
            where: a condition on what is known of the files, such as ``"width >= 1000"`` (filters.py).
            sort: match; date (newest first) or path of the best `POOL`, or of ``top`` + ``offset`` if that is more.
            rank: match, or raw for the cosine alone.
            min_match: hits below it are left out.
            collapse: near copies as one hit.

        Raises:
            UserError: a query that cannot be encoded, a condition or an option that cannot be read; Damaged: a hit is
                not what was written.
        """
        if not (isinstance(top, Integral) and isinstance(offset, Integral) and top >= 1 and offset >= 0):
            raise UserError(f"top is {top} and offset {offset}; give whole numbers, at least 1, and 0")
        top, offset = int(top), int(offset)
        if min_match is not None and not 0 <= min_match <= 1:
            raise UserError(f"min_match is {min_match}; give a number from 0 to 1")
        for name, value, known in (("sort", sort, ("match", "date", "path")), ("rank", rank, ("match", "raw"))):
            if value not in known:
                raise UserError(f"{name} is {value!r}; it can be {', '.join(known)}")
        own = {kind: kind for kind in self.kinds}  # also those of a modality that is not built in
        kinds = tuple(own.get(kind) or kind_of(kind) for kind in ([only] if isinstance(only, str) else only))
        condition = None if where is None else compile_condition(where)
        query = Query(text=query) if isinstance(query, str) else query
        vector = encode(query, self.store, lambda: self.embedder, lambda: self.text_branch)
        if not self.matrix.is_whole():
            self.forget()
        store, matrix, allowed = self.store, self.matrix, self.mask(kinds, condition)
        if paths := query.paths():
            others = ~rows_of(store, matrix, f"path IN ({', '.join('?' * len(paths))})", paths)
            allowed = others if allowed is None else allowed & others
        banks = self.banks if rank == "match" else Banks({})
        wanted = top + offset if sort == "match" else max(POOL, top + offset)
        count = CANDIDATES * wanted
        while True:
            rows, cosines, match = ranked(banks, vector, matrix.nearest(vector.vector, count, allowed, self.service))
            groups = grouped(matrix, rows, collapse)
            if len(groups) >= wanted or len(rows) < count or count >= len(matrix):
                break
            count *= 4
        if match is not None and min_match is not None:
            groups = [group for group in groups if match[group[0]] >= min_match]
        groups = groups[offset:wanted] if sort == "match" else groups[:wanted]
        file = matrix.file[rows].tolist()
        known = store.intact(sorted({file[place] for group in groups for place in group}))
        items = {id_: item for id_, (item, _, _) in known.items()}
        if sort != "match":
            groups.sort(key=lambda group: items[file[group[0]]].path)
            if sort == "date":
                groups.sort(key=lambda group: -(items[file[group[0]]].date or 0.0))
            groups = groups[offset : offset + top]
        hits = []
        for number, (place, *copies) in enumerate(groups, offset + 1):
            item, row = items[file[place]], int(rows[place])
            if not (known[item.id][2] == matrix.vectors[row]).all(axis=1).any():
                raise Damaged(store.folder, f"the matrix, at a vector of {item.path}")
            numbers = float(cosines[place]), None if match is None else float(match[place])
            alike = tuple(items[file[copy]].path for copy in copies)
            hits.append(Hit(number, item, store.kinds[matrix.modality[row]], *numbers, *matrix.times(row), alike))
        ids, places = matrix.files
        compared = len(ids) if allowed is None else np.count_nonzero(np.bincount(places[allowed]))
        return Results(tuple(hits), int(compared), None if match is None else bool(match.max() >= RELEVANT))

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
        self._show(new)
        return True

    def _show(self, store: Store) -> None:
        self.store, self.folder, self.embed_dim, self.kinds = store, store.folder, store.embed_dim, store.kinds
        self.model, self.model_hash = store.meta["model"], store.meta["model_hash"]
        register(store.connection, store.roots())

    def forget(self) -> None:
        """Leave what was computed of the vectors to be computed anew."""
        if (service := self.__dict__.get("service")) is not None:
            service.close()
        for name in ("matrix", "banks", "service", "mask"):
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
            told = f"made with another {what}, {other}, not {own}; vectors of both cannot be compared"
            raise UserError(f"{store.folder}: {told}, so {remedy}")


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
