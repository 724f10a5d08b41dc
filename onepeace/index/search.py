"""What a query finds: the nearest vectors of each kind on one scale, one hit for each file, near copies together."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from onepeace.index.database import Damaged
from onepeace.index.filters import Condition, joined
from onepeace.index.nearest import Matrix
from onepeace.index.query import QueryVector
from onepeace.index.ranking import Ranking, falling, likelihood
from onepeace.index.store import Item, Store

ALIKE = 0.98
"""Cosine of two files of one kind from which on they are shown as copies of one another."""
SAME = 0.9999
"""Cosine of a query and a file of its own kind from which on the file is a copy of it."""
POOL = 200
"""Best files that are sorted by date or path, unless more hits are asked for."""
REMEMBERED = 16
"""Filters whose results are kept in memory."""
CANDIDATES = 4
"""Vectors looked at for each hit that is wanted; several may be of one file."""
BLOCK = 256
"""Files that are compared at once with those before them, to find near copies."""
NOTHING = "nothing relevant found; the nearest are:"

Sort = Literal["match", "date", "path"]


@dataclass(frozen=True)
class Filter:
    """Files that may be found. Fields that are empty allow all."""

    only: tuple[str, ...] = ()
    """Modalities of the vectors, "video" for all vectors of videos; a video is found by its pictures and its sound."""
    conditions: tuple[Condition, ...] = ()
    exclude: frozenset[str] = frozenset()
    """Paths that are not found: those of the query's own files."""


@dataclass(frozen=True)
class Hit:
    """A file that was found."""

    rank: int
    item: Item
    modality: str
    """Modality of the vector that was found."""
    score: float
    """Cosine of the file's nearest vector and the query."""
    z: float
    """Cosine on one scale for all kinds."""
    match: float | None = None
    """Share of unrelated queries whose best hit of this kind in this folder scores lower; 1 for a copy of the query.
    None where the cosine ranks."""
    start: float | None = None
    end: float | None = None
    """Seconds of the part that was found, if the file has several vectors."""
    copies: tuple[str, ...] = ()
    """Paths of further files that are nearly the same."""

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
        number = f"{self.score:.3f}" if self.match is None else f"{self.likelihood} {self.match:.2f}"
        when = "" if self.start is None else f" at {int(self.start) // 60}:{int(self.start) % 60:02d}"
        return f"{self.rank}  {number}  {self.item.modality}  {self.item.path}{when}"


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


@dataclass(frozen=True)
class Scored:
    """Candidate rows of the matrix, best first."""

    rows: np.ndarray
    cosines: np.ndarray
    z: np.ndarray
    match: np.ndarray | None


def scored(matrix: Any, ranking: Ranking, query: QueryVector, count: int, allowed: np.ndarray | None) -> Scored:
    """The best rows of all kinds in one list, by z; matches fall with it, so it is in the order of what is shown.

    Args:
        matrix: gives the nearest rows of each modality; see `Matrix.nearest`.
        count: rows of each modality.
        allowed: (n,) bool; None = all.
    """
    rows, cosines, scales, matches = [], [], [], []
    for modality, found in matrix.nearest(query.vector, count, allowed).items():
        z, match = ranking.score(query, modality, found.cosines)
        if match is not None and any(part.bank == modality for part in query.parts) and len(query.parts) == 1:
            same = found.cosines >= SAME
            z, match = np.where(same, np.inf, z), np.where(same, 1.0, match)
        rows.append(found.rows)
        cosines.append(found.cosines)
        scales.append(z)
        matches.append(match)
    if not rows:
        empty = np.empty(0, np.float32)
        return Scored(np.empty(0, np.int64), empty, empty, None)
    row, cosine, z = np.concatenate(rows), np.concatenate(cosines), np.concatenate(scales)
    if any(match is None for match in matches):  # no match of one kind beside a cosine of another
        order = np.lexsort((row, -cosine))
        return Scored(row[order], cosine[order], z[order], None)
    match = np.concatenate([match for match in matches if match is not None])
    order = np.lexsort((row, -z))
    return Scored(row[order], cosine[order], z[order], falling(match[order]))


def hits_of(
    store: Store,
    matrix: Matrix,
    best: Callable[[int], Scored],
    *,
    top: int,
    offset: int = 0,
    sort: Sort = "match",
    collapse: bool = True,
    min_match: float | None = None,
) -> Iterator[Hit]:
    """Hits from rank ``offset`` + 1 on: the nearest vector of each file, near copies together.

    Args:
        best: gives the best vectors of each kind; asked for more until there are enough files.
        sort: date (newest first) and path order the best POOL anew, or the best ``top`` + ``offset`` if that is more.
        min_match: hits below it are left out.

    Raises:
        Damaged: a hit is not what was written.
    """
    wanted = top + offset if sort == "match" else max(POOL, top + offset)
    count = CANDIDATES * wanted
    while True:
        scores = best(count)
        groups = _grouped(matrix, scores.rows, collapse)
        if len(groups) >= wanted or len(scores.rows) < count or count >= len(matrix):
            break
        count *= 4
    place = {int(row): i for i, row in enumerate(scores.rows)}
    groups = groups[:wanted] if sort != "match" else groups[offset:wanted]
    known = store.intact(sorted({int(matrix.file[row]) for group in groups for row in group}))
    hits = []
    for group in groups:
        i = place[group[0]]
        match = None if scores.match is None else float(scores.match[i])
        if min_match is not None and match is not None and match < min_match:
            continue
        item, _, vectors = known[int(matrix.file[group[0]])]
        start, end = matrix.times(group[0])
        modality = store.kinds[matrix.modality[group[0]]]
        if not _is_of(matrix.vectors[group[0]], vectors):
            raise Damaged(store.folder, f"the matrix, at a vector of {item.path}")
        copies = tuple(known[int(matrix.file[row])][0].path for row in group[1:])
        hits.append(Hit(0, item, modality, float(scores.cosines[i]), float(scores.z[i]), match, start, end, copies))
    if sort != "match":
        hits.sort(key=lambda hit: hit.item.path)
        if sort == "date":
            hits.sort(key=lambda hit: -(hit.item.date or 0.0))
        hits = hits[offset : offset + top]
    for rank, hit in enumerate(hits, offset + 1):
        yield replace(hit, rank=rank)


def _is_of(vector: np.ndarray, vectors: np.ndarray) -> bool:
    """Whether a row of the matrix is one of the vectors that the database has of its file."""
    return bool((vectors == vector).all(axis=1).any())


def _grouped(matrix: Matrix, rows: np.ndarray, collapse: bool) -> list[list[int]]:
    """The best row of each file, best first; those of near copies as one group."""
    first: dict[int, int] = {}
    for row in rows:
        first.setdefault(int(matrix.file[row]), int(row))
    best = list(first.values())
    if not collapse:
        return [[row] for row in best]
    vectors = matrix.vectors[best]
    groups: dict[int, list[int]] = {}  # by the place of their first row in `best`
    for start in range(0, len(best), BLOCK):
        some = vectors[start : start + BLOCK]
        for i, alike in enumerate(some @ vectors[: start + len(some)].T >= ALIKE, start):
            row = best[i]
            earlier = (int(j) for j in np.flatnonzero(alike[:i]) if matrix.modality[best[j]] == matrix.modality[row])
            groups.setdefault(next((j for j in earlier if j in groups), i), []).append(row)
    return list(groups.values())


class Filters:
    """Vectors of an index that the filters of queries allow; what was asked last is remembered."""

    def __init__(self, store: Store, matrix: Matrix) -> None:
        self.store, self.matrix = store, matrix
        self.ids, self._file = np.unique(matrix.file, return_inverse=True)
        """(files,) ids, rising; and for each vector the place of its file's."""
        self._mask = lru_cache(REMEMBERED)(self._computed)

    def allowed(self, chosen: Filter) -> np.ndarray | None:
        """(n,) bool over the rows; None = all."""
        mask = self._mask(chosen.only, chosen.conditions)
        if not chosen.exclude:
            return mask
        paths = [os.fsencode(path) for path in chosen.exclude]
        own = self._files(f"path IN ({', '.join('?' * len(paths))})", paths)
        if not own.any():
            return mask
        return ~own[self._file] if mask is None else mask & ~own[self._file]

    def count(self, allowed: np.ndarray | None) -> int:
        """Number of files that have an allowed vector."""
        if allowed is None:
            return len(self.ids)
        return int(np.count_nonzero(np.bincount(self._file[allowed], minlength=len(self.ids))))

    def _computed(self, only: tuple[str, ...], conditions: tuple[Condition, ...]) -> np.ndarray | None:
        masks = []
        if only:
            mask = np.isin(self.matrix.modality, [code for code, key in enumerate(self.store.kinds) if key in only])
            if "video" in only:
                mask |= self._files("modality = 'video'", ())[self._file]
            masks.append(mask)
        if condition := joined(conditions):
            masks.append(self._files(condition.sql, condition.params)[self._file])
        return np.logical_and.reduce(masks) if masks else None

    def _files(self, sql: str, parameters: Sequence[Any]) -> np.ndarray:
        """(files,) bool: those that a condition selects."""
        return np.isin(self.ids, self.store.ids(sql, parameters), assume_unique=True)
