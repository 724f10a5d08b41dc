"""What a query finds in an index: filters, the nearest vectors, one hit for each file, alike files together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onepeace.index.ranking import RANKINGS, Pool, QueryVector, match, znorm
from onepeace.index.store import Item, Rows, Store
from onepeace.index.where import Condition, joined

ALIKE = 0.98
"""Cosine of two files of one kind from which on they count as copies of one another."""
POOL = 200
"""Best files that are sorted by date or path."""
CANDIDATES = 4
"""Vectors looked at for each hit that is wanted; several may be of one file."""


@dataclass(frozen=True)
class Filter:
    """Which files may be found. Fields that are None, or empty, allow all."""

    only: tuple[str, ...] = ()
    """Modalities of the vectors; a video is found by its pictures and its sound."""
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
    """Seconds of the part that was found, of a file that has several vectors."""
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


@dataclass(frozen=True)
class Scores:
    """Of every vector of an index, or of some."""

    rows: np.ndarray
    """(m,) places in `Rows`, the best first."""
    cosine: np.ndarray
    """(m,) float32."""
    z: np.ndarray
    """(m,) float32: what they are ordered by."""
    match: np.ndarray | None
    """(m,) probabilities; None without a calibration."""


def hits_of(
    store: Store,
    rows: Rows,
    best: Callable[[int], Scores],
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
        sort: date (newest first) and path order the hits that reach ``min_match``, or without a calibration the best
            POOL, anew.
        min_match: leaves hits below it out when they are sorted anew; sorted by match they only come last.
    """
    wanted = top + offset if sort == "match" else POOL
    count = CANDIDATES * wanted
    while True:
        scores = best(count)
        groups = _grouped(rows, scores, duplicates == "collapse")
        if len(groups) >= wanted or len(scores.rows) < count:
            break
        count *= 4
    hits = []
    items = {
        item.id: item for item in _items(store, [int(rows.file[row]) for group in groups[:wanted] for row in group])
    }
    place = {int(row): i for i, row in enumerate(scores.rows)}
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
        if min_match is not None and scores.match is not None:
            hits = [hit for hit in hits if hit.match is not None and hit.match >= min_match]
        hits.sort(key=lambda hit: hit.item.path)
        if sort == "date":
            hits.sort(key=lambda hit: -(hit.item.date or 0.0))
    for rank, hit in enumerate(hits[offset : offset + top], offset + 1):
        yield replace(hit, rank=rank)


def scorer(
    rows: Rows, query: QueryVector, pool: Pool, allowed: np.ndarray | None, rank: str
) -> Callable[[int], Scores]:
    """What gives the so many best vectors of the allowed ones.

    Args:
        pool: modality of each of ``rows``, and what a calibration says of them.
        allowed: (n,) bool; None = all.
        rank: a key of RANKINGS.
    """
    cosine = (rows.vectors @ query.vector)[rows.row]
    z = RANKINGS[rank](query, cosine, pool)
    z = z if allowed is None else np.where(allowed, z, -np.inf)
    count = len(z) if allowed is None else int(allowed.sum())

    def best(wanted: int) -> Scores:
        wanted = min(wanted, count)
        some = np.argpartition(-z, wanted - 1)[:wanted] if 0 < wanted < len(z) else np.arange(len(z))
        order = some[np.lexsort((some, -z[some]))][:wanted]
        return Scores(order, cosine[order], z[order], _match(query, cosine[order], pool.take(order)))

    return best


def _match(query: QueryVector, cosine: np.ndarray, pool: Pool) -> np.ndarray | None:
    return None if pool.statistics is None else match(query, znorm(query, cosine, pool), pool)


def _grouped(rows: Rows, scores: Scores, collapse: bool) -> list[list[int]]:
    """The best row of each file, best first; those of near copies as one group."""
    first: dict[int, int] = {}
    for row in scores.rows:
        first.setdefault(int(rows.file[row]), int(row))
    if not collapse:
        return [[row] for row in first.values()]
    groups: list[list[int]] = []
    heads = np.empty((0, rows.vectors.shape[1]), np.float32)
    for row in first.values():
        vector = rows.vectors[rows.row[row]]
        alike = np.flatnonzero(heads @ vector >= ALIKE)
        same = [i for i in alike if rows.modality[groups[i][0]] == rows.modality[row]]
        if same:
            groups[same[0]].append(row)
        else:
            groups.append([row])
            heads = np.concatenate([heads, vector[None]])
    return groups


def _items(store: Store, ids: list[int]) -> Iterator[Item]:
    for first in range(0, len(ids), 500):  # SQLite takes a bounded number of parameters
        some = ids[first : first + 500]
        yield from store.items(f"id IN ({', '.join('?' * len(some))})", some)


def allowed_rows(store: Store, rows: Rows, chosen: Filter) -> np.ndarray | None:
    """(n,) bool over ``rows``: what a filter allows; None = all."""
    masks = []
    if chosen.only:
        masks.append(np.isin(rows.modality, [code for code, key in enumerate(store.kinds) if key in chosen.only]))
    if chosen.conditions:
        condition = joined("AND", chosen.conditions)
        masks.append(np.isin(rows.file, store.ids(condition.sql, condition.params)))
    if chosen.exclude:
        paths = [path.encode("utf-8", "surrogateescape") for path in chosen.exclude]
        marks = ", ".join("?" * len(paths))
        masks.append(~np.isin(rows.file, store.ids(f"path IN ({marks})", paths)))
    return np.logical_and.reduce(masks) if masks else None
