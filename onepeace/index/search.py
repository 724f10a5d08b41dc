"""What a query finds: the nearest vectors of each kind on one scale, one hit for each file, near copies together."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from onepeace.index.filters import Condition
from onepeace.index.nearest import Matrix
from onepeace.index.query import QueryVector
from onepeace.index.ranking import Banks, falling, likelihood
from onepeace.index.store import Damaged, Item, Store

ALIKE = 0.98
"""Cosine of two files of one kind from which on they are shown as copies of one another."""
SAME = 0.9999
"""Cosine of a query and a file of its own kind from which on the file is a copy of it."""
POOL = 200
"""Best files that are sorted by date or path, unless more hits are asked for."""
REMEMBERED = 16
"""Filters whose masks are cached."""
CANDIDATES = 4
"""Vectors fetched per hit wanted; several may be of one file."""
BLOCK = 256
"""Files compared at once with those ranked before them, to find near copies."""
NOTHING = "nothing relevant found; the nearest are:"

Sort = Literal["match", "date", "path"]


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


def _ranked(
    source: Any, banks: Banks, query: QueryVector, count: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows of the matrix, ``count`` of each modality, best first by z; their cosines; and their matches, which fall.

    Without matches for all of them there are none, and the cosine orders.
    """
    found = source.nearest(query.vector, count, allowed)
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.float32), None
    rows = np.concatenate([one.rows for one in found.values()])
    cosines = np.concatenate([one.cosines for one in found.values()])
    scores = [banks.score(query, modality, one.cosines) for modality, one in found.items()]
    matches = [match for _, match in scores if match is not None]
    if len(matches) < len(scores):
        order = np.lexsort((rows, -cosines))
        return rows[order], cosines[order], None
    z, match = np.concatenate([z for z, _ in scores]), np.concatenate(matches)
    if len(query.parts) == 1 and (own := found.get(query.parts[0].bank)):
        same = np.isin(rows, own.rows[own.cosines >= SAME])
        z, match = np.where(same, np.inf, z), np.where(same, 1.0, match)
    order = np.lexsort((rows, -z))
    return rows[order], cosines[order], falling(match[order])


def search(
    store: Store,
    matrix: Matrix,
    source: Any,
    banks: Banks,
    query: QueryVector,
    allowed: np.ndarray | None,
    *,
    top: int,
    offset: int,
    sort: Sort,
    collapse: bool,
    min_match: float | None,
) -> tuple[tuple[Hit, ...], float | None]:
    """Hits from rank ``offset`` + 1 on, the nearest vector of each file, and the match of the best one of all.

    Args:
        source: finds the nearest rows of the matrix: itself, or a service (see `nearest.service_of`).
        allowed: (n,) bool rows; None = all.
        sort: date (newest first) and path order the best POOL anew, or the best ``top`` + ``offset`` if that is more.

    Raises:
        Damaged: a hit is not what was written.
    """
    wanted = top + offset if sort == "match" else max(POOL, top + offset)
    count = CANDIDATES * wanted
    while True:
        rows, cosines, match = _ranked(source, banks, query, count, allowed)
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
    for rank, (place, *copies) in enumerate(groups, offset + 1):
        item, row = items[file[place]], int(rows[place])
        if not (known[file[place]][2] == matrix.vectors[row]).all(axis=1).any():
            raise Damaged(store.folder, f"the matrix, at a vector of {item.path}")
        modality, paths = store.kinds[matrix.modality[row]], tuple(items[file[copy]].path for copy in copies)
        numbers = float(cosines[place]), None if match is None else float(match[place])
        hits.append(Hit(rank, item, modality, *numbers, *matrix.times(row), paths))
    return tuple(hits), None if match is None else float(match.max())


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


class Filters:
    """Masks over the rows of a matrix for the filters of queries, cached."""

    def __init__(self, store: Store, matrix: Matrix) -> None:
        self.store, self.matrix = store, matrix
        self.ids, self._file = np.unique(matrix.file, return_inverse=True)
        """(files,) ids, rising; and for each row the place of its file's."""
        self._remembered = lru_cache(REMEMBERED)(self._computed)

    def allowed(self, only: tuple[str, ...], where: Condition | None, without: Collection[str]) -> np.ndarray | None:
        """(n,) bool over the rows; None = all.

        Args:
            only: modalities of the vectors, "video" for all vectors of videos; none = all.
            without: paths of files that are left out.
        """
        mask = self._remembered(only, where)
        paths = [os.fsencode(path) for path in without]
        if not paths or not (own := self._rows(f"path IN ({', '.join('?' * len(paths))})", paths)).any():
            return mask
        return ~own if mask is None else mask & ~own

    def count(self, allowed: np.ndarray | None) -> int:
        """Number of files that have an allowed row."""
        return len(self.ids) if allowed is None else int(np.count_nonzero(np.bincount(self._file[allowed])))

    def _computed(self, only: tuple[str, ...], where: Condition | None) -> np.ndarray | None:
        masks = []
        if only:
            mask = np.isin(self.matrix.modality, [code for code, key in enumerate(self.store.kinds) if key in only])
            masks.append(mask | self._rows("modality = 'video'", ()) if "video" in only else mask)
        if where is not None:
            masks.append(self._rows(where.sql, where.params))
        return np.logical_and.reduce(masks) if masks else None

    def _rows(self, sql: str, parameters: Sequence[Any]) -> np.ndarray:
        """(n,) bool: rows of the files that a condition selects."""
        return np.isin(self.ids, self.store.ids(sql, parameters), assume_unique=True)[self._file]
