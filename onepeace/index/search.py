"""What a query finds: the nearest vectors of each kind on one scale, one hit for each file, near copies together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onepeace.errors import UserError
from onepeace.index.filters import Condition, compile_condition, kind_of
from onepeace.index.nearest import Found, Matrix
from onepeace.index.query import Query, QueryVector, encode
from onepeace.index.ranking import RELEVANT, Banks, likelihood
from onepeace.index.store import Damaged, Item, Store

if TYPE_CHECKING:
    from onepeace.index.index import Index

ALIKE = 0.98
"""Cosine of two files of one kind from which on they are shown as copies of one another."""
SAME = 0.9999
"""Cosine of a query and a file of its own kind from which on the file is a copy of it."""
POOL = 200
"""Best files that are sorted by date or path, unless more hits are asked for."""
CANDIDATES = 4
"""Vectors fetched per hit wanted; several may be of one file."""
BLOCK = 256
"""Files compared at once with those ranked before them, to find near copies."""
NOTHING = "nothing relevant found; the nearest are:"


@dataclass(frozen=True)
class Hit:
    """A file that was found."""

    rank: int
    item: Item
    modality: str
    """Modality of the vector that was found."""
    score: float
    """Cosine of the file's nearest vector and the query."""
    match: float | None = None
    """Share of unrelated queries whose best hit of this kind in this folder scores lower; 1 for a copy of the query.
    None where the cosine ranks."""
    start: float | None = None
    end: float | None = None
    """Seconds of the part that was found, if the file has several vectors."""
    copies: tuple[str, ...] = ()
    """Paths of further files that are nearly the same."""

    @property
    def value(self) -> str:
        """The match, or where there is none the cosine, as it is shown."""
        return f"{self.score:.3f}" if self.match is None else f"{self.likelihood} {self.match:.2f}"

    @property
    def at(self) -> str:
        """Start of the part that was found, as 1:15 or 1:01:15; "" for the whole file."""
        if self.start is None:
            return ""
        minutes, seconds = divmod(int(self.start), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"

    @property
    def likelihood(self) -> str | None:
        """The match as a word: likely, possible or unlikely."""
        return None if self.match is None else likelihood(self.match)

    def to_dict(self) -> dict[str, Any]:
        """Hit as JSON takes it; the same in every interface."""
        known = {name: getattr(self, name) for name in ("modality", "match", "likelihood", "score", "start", "end")}
        about = self.item.to_dict()
        head = {"rank": self.rank, "path": about.pop("path"), "kind": about.pop("kind")}
        return {**head, **known, "copies": list(self.copies), **about}

    def __str__(self) -> str:
        return f"{self.rank}  {self.value}  {self.item.modality}  {self.item.path}{f' at {self.at}' * bool(self.at)}"


@dataclass(frozen=True)
class Results(Sequence[Hit]):
    """Hits of a query, best first."""

    hits: tuple[Hit, ...]
    compared: int
    """Files that the filters allowed."""
    relevant: bool | None = None
    """Whether the best hit is likely or possible to be an answer; None where that is not known."""

    @property
    def heading(self) -> str | None:
        """Line to show above hits that are no answers."""
        return NOTHING if self.relevant is False and self.hits else None

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: Any) -> Any:
        return self.hits[place]

    def to_dict(self) -> dict[str, Any]:
        """Results as JSON takes them."""
        hits = [hit.to_dict() for hit in self.hits]
        return {"hits": hits, "compared": self.compared, "relevant": self.relevant, "heading": self.heading}


def search(
    index: "Index",
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
    """The files nearest to a query, best first; the method `Index.search`.

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
        UserError: a query that cannot be encoded, a condition or an option that cannot be read; Damaged: a hit is not
            what was written.
    """
    if not (isinstance(top, Integral) and isinstance(offset, Integral) and top >= 1 and offset >= 0):
        raise UserError(f"top is {top} and offset {offset}; give whole numbers, at least 1, and 0")
    if min_match is not None and not 0 <= min_match <= 1:
        raise UserError(f"min_match is {min_match}; give a number from 0 to 1")
    for name, value, known in (("sort", sort, ("match", "date", "path")), ("rank", rank, ("match", "raw"))):
        if value not in known:
            raise UserError(f"{name} is {value!r}; it can be {', '.join(known)}")
    own = {kind: kind for kind in index.kinds}  # also those of a modality that is not built in
    kinds = tuple(own.get(kind) or kind_of(kind) for kind in ([only] if isinstance(only, str) else only))
    condition = None if where is None else compile_condition(where)
    query = Query(text=query) if isinstance(query, str) else query
    vector = encode(query, index)
    if not index.matrix.is_whole():
        index.forget()
    store, matrix, allowed = index.store, index.matrix, index.mask(kinds, condition)
    if paths := query.paths():
        others = ~rows_of(store, matrix, f"path IN ({', '.join('?' * len(paths))})", paths)
        allowed = others if allowed is None else allowed & others
    banks = index.banks if rank == "match" else Banks({})
    wanted = top + offset if sort == "match" else max(POOL, top + offset)
    count = CANDIDATES * wanted
    while True:
        rows, cosines, match = _ranked(banks, vector, matrix.nearest(vector.vector, count, allowed, index.service))
        groups = _grouped(matrix, rows, collapse)
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


def _ranked(
    banks: Banks, query: QueryVector, found: dict[str, Found]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows of the matrix, best first by z; their cosines; and their matches, none of them above an earlier one.

    Without matches for all of them there are none, and the cosine orders.
    """
    rows = np.concatenate([np.empty(0, np.int64), *(one.rows for one in found.values())])
    cosines = np.concatenate([np.empty(0, np.float32), *(one.cosines for one in found.values())])
    scores = [banks.score(query, modality, one.cosines) for modality, one in found.items()]
    matches = [match for _, match in scores if match is not None]
    if not found or len(matches) < len(scores):
        order = np.lexsort((rows, -cosines))
        return rows[order], cosines[order], None
    z, match = np.concatenate([z for z, _ in scores]), np.concatenate(matches)
    if len(query.parts) == 1 and (own := found.get(query.parts[0].bank)):
        same = np.isin(rows, own.rows[own.cosines >= SAME])
        z, match = np.where(same, np.inf, z), np.where(same, 1.0, match)
    order = np.lexsort((rows, -z))
    return rows[order], cosines[order], np.minimum.accumulate(match[order])


def _grouped(matrix: Matrix, rows: np.ndarray, collapse: bool) -> list[list[int]]:
    """Place in ``rows`` of the best row of each file, best first; those of near copies as one group."""
    best = np.sort(np.unique(matrix.file[rows], return_index=True)[1])
    if not collapse:
        return [[place] for place in best.tolist()]
    vectors, modality = matrix.vectors[rows[best]], matrix.modality[rows[best]]
    groups: dict[int, list[int]] = {}  # by the place of their first row in `best`
    for start in range(0, len(best), BLOCK):
        some = vectors[start : start + BLOCK]
        for i, alike in enumerate(some @ vectors[: start + len(some)].T >= ALIKE, start):
            earlier = (j for j in np.flatnonzero(alike[:i] & (modality[:i] == modality[i])).tolist() if j in groups)
            groups.setdefault(next(earlier, i), []).append(int(best[i]))
    return list(groups.values())


def rows_of(store: Store, matrix: Matrix, sql: str, parameters: Sequence[Any] = ()) -> np.ndarray:
    """(n,) bool: rows of the files that a condition selects."""
    ids, places = matrix.files
    return np.isin(ids, store.ids(sql, parameters), assume_unique=True)[places]


def mask_of(store: Store, matrix: Matrix, only: Collection[str], where: Condition | None) -> np.ndarray | None:
    """(n,) bool: rows that may be found; None = all.

    Args:
        only: modalities of the vectors, "video" for all vectors of videos; none = all.
    """
    masks = [] if where is None else [rows_of(store, matrix, where.sql, where.params)]
    if only:
        mask = np.isin(matrix.modality, [code for code, key in enumerate(store.kinds) if key in only])
        masks.append(mask | rows_of(store, matrix, "modality = 'video'") if "video" in only else mask)
    return np.logical_and.reduce(masks) if masks else None
