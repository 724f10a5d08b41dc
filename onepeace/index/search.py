"""What a query finds in an index: filters, the nearest vectors, one hit for each file, alike files together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from onepeace.index.candidates import Best, Scores
from onepeace.index.store import Item, Rows, Store
from onepeace.index.where import Condition, joined

ALIKE = 0.98
"""Cosine of two files of one kind from which on they count as copies of one another."""
POOL = 200
"""Best files that are sorted by date or path, unless more hits are asked for."""
REMEMBERED = 16
"""Filters whose results are kept in memory."""
CANDIDATES = 4
"""Vectors looked at for each hit that is wanted; several may be of one file."""
BLOCK = 256
"""Files that are compared at once with those before them, to find near copies."""


@dataclass(frozen=True)
class Filter:
    """Which files may be found. Fields that are None, or empty, allow all."""

    only: tuple[str, ...] = ()
    """Modalities of the vectors, "video" for all vectors of videos; a video is found by its pictures and its sound."""
    conditions: tuple[Condition, ...] = ()
    """Over the fields of the files, from where.py and path_glob.py."""
    exclude: frozenset[str] = frozenset()
    """Paths that are not found: those of the query's own files."""


@dataclass(frozen=True)
class Hit:
    """A file that was found."""

    rank: int
    item: Item
    modality: str
    """Of the vector that was found."""
    score: float
    """Cosine of the file's nearest vector and the query."""
    z: float
    """What hits are ordered by; the score itself for rank="raw"."""
    match: float | None
    """Probability that it is relevant; None without a calibration."""
    start: float | None = None
    end: float | None = None
    """Seconds of the part that was found, of a video or another file that has several vectors."""
    copies: tuple[str, ...] = ()
    """Paths of further files that are nearly the same."""


@dataclass(frozen=True)
class Results:
    """The hits of a query."""

    hits: tuple[Hit, ...]
    compared: int
    """Files that the filters allowed."""
    relevant: bool | None = None
    """Whether any hit reaches the match that was asked for; None where that cannot be said."""


Sort = Literal["match", "date", "path"]
Duplicates = Literal["collapse", "show"]


def hits_of(
    store: Store,
    rows: Rows,
    best: Best,
    *,
    top: int,
    offset: int = 0,
    sort: Sort = "match",
    duplicates: Duplicates = "collapse",
    min_match: float | None = None,
) -> Iterator[Hit]:
    """The hits from rank ``offset`` + 1 on: of each file its nearest vector, near copies together.

    Args:
        best: gives so many best vectors; asked for more until there are enough files.
        sort: date (newest first) and path order the best POOL anew, or the best ``top`` + ``offset`` if that is more.
        min_match: leaves hits below it out when they are sorted anew; sorted by match they only come last. Hits
            without a match are kept.
    """
    wanted = top + offset if sort == "match" else max(POOL, top + offset)
    count = CANDIDATES * wanted
    while True:
        scores = best(count)
        groups = _grouped(rows, scores, duplicates == "collapse")
        if len(groups) >= wanted or len(scores.places) < count:
            break
        count *= 4
    hits = []
    items = {
        item.id: item for item in _items(store, [int(rows.file[row]) for group in groups[:wanted] for row in group])
    }
    place = {int(row): i for i, row in enumerate(scores.places)}
    for group in groups[:wanted]:
        row = group[0]
        i, item = place[row], items.get(int(rows.file[row]))
        if item is None:  # removed since the vectors were read
            continue
        copies = tuple(items[int(rows.file[other])].path for other in group[1:] if int(rows.file[other]) in items)
        start, end = (None if np.isnan(value) else float(value) for value in (rows.start[row], rows.end[row]))
        known = scores.match is not None and np.isfinite(scores.match[i])
        probability = float(scores.match[i]) if scores.match is not None and known else None
        modality = store.kinds[rows.modality[row]]
        score, z = float(scores.cosine[i]), float(scores.z[i])
        hits.append(Hit(0, item, modality, score, z, probability, start, end, copies))
    if sort != "match":
        if min_match is not None:
            hits = [hit for hit in hits if hit.match is None or hit.match >= min_match]
        hits.sort(key=lambda hit: hit.item.path)
        if sort == "date":
            hits.sort(key=lambda hit: -(hit.item.date or 0.0))
    for rank, hit in enumerate(hits[offset : offset + top], offset + 1):
        yield replace(hit, rank=rank)


def _grouped(rows: Rows, scores: Scores, collapse: bool) -> list[list[int]]:
    """The best row of each file, best first; those of near copies as one group."""
    first: dict[int, int] = {}
    for row in scores.places:
        first.setdefault(int(rows.file[row]), int(row))
    best = list(first.values())
    if not collapse:
        return [[row] for row in best]
    vectors = rows.vectors[rows.row[best]]
    groups: dict[int, list[int]] = {}  # by the place of their first row in `best`
    for start in range(0, len(best), BLOCK):
        some = vectors[start : start + BLOCK]
        for i, alike in enumerate(some @ vectors[: start + len(some)].T >= ALIKE, start):
            row = best[i]
            earlier = (int(j) for j in np.flatnonzero(alike[:i]) if rows.modality[best[j]] == rows.modality[row])
            groups.setdefault(next((j for j in earlier if j in groups), i), []).append(row)
    return list(groups.values())


def _items(store: Store, ids: list[int]) -> Iterator[Item]:
    for first in range(0, len(ids), 500):  # SQLite takes a bounded number of parameters
        some = ids[first : first + 500]
        yield from store.items(f"id IN ({', '.join('?' * len(some))})", some)


class Filters:
    """Which vectors of an index the filters of queries allow; what was asked last is remembered."""

    def __init__(self, store: Store, rows: Rows) -> None:
        self.store, self.rows = store, rows
        self.ids, self._file = np.unique(rows.file, return_inverse=True)
        """(files,) ids, rising; and of each vector the place of its file's."""
        self._mask = lru_cache(REMEMBERED)(self._computed)

    def allowed(self, chosen: Filter) -> np.ndarray | None:
        """(n,) bool over the rows; None = all."""
        mask = self._mask(chosen.only, chosen.conditions)
        if not chosen.exclude:
            return mask
        paths = [path.encode("utf-8", "surrogateescape") for path in chosen.exclude]
        own = self._files(f"path IN ({', '.join('?' * len(paths))})", paths)
        if not own.any():
            return mask
        return ~own[self._file] if mask is None else mask & ~own[self._file]

    def count(self, allowed: np.ndarray | None) -> int:
        """Files that have an allowed vector."""
        if allowed is None:
            return len(self.ids)
        return int(np.count_nonzero(np.bincount(self._file[allowed], minlength=len(self.ids))))

    def _computed(self, only: tuple[str, ...], conditions: tuple[Condition, ...]) -> np.ndarray | None:
        masks = []
        if only:
            codes = [code for code, key in enumerate(self.store.kinds) if key in only]
            mask = np.isin(self.rows.modality, codes)
            if "video" in only:
                mask |= self._files("modality = 'video'", ())[self._file]
            masks.append(mask)
        if conditions:
            condition = joined("AND", conditions)
            masks.append(self._files(condition.sql, condition.params)[self._file])
        return np.logical_and.reduce(masks) if masks else None

    def _files(self, sql: str, parameters: Sequence[Any]) -> np.ndarray:
        """(files,) bool: those that a condition selects."""
        mask = np.zeros(len(self.ids), np.bool_)
        found = self.store.ids(sql, parameters)
        places = np.searchsorted(self.ids, found)
        known = places < len(self.ids)
        mask[places[known][self.ids[places[known]] == found[known]]] = True
        return mask
