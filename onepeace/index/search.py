"""Hits of a query: the nearest vectors of each kind on one scale, one hit per file, near copies grouped."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepeace.index.filters import Condition
from onepeace.index.items import Item, as_text
from onepeace.index.nearest import Matrix, Neighbours
from onepeace.index.query import QueryVector
from onepeace.index.ranking import Banks, likelihood
from onepeace.index.store import Store

ALIKE = 0.98
"""Minimum cosine of two files of one kind to be shown as near copies."""
SAME = 0.9999
"""Minimum cosine of a query and a file of its kind for the file to count as a copy of it."""
BLOCK = 256
"""Files compared at once with those ranked above them, to find near copies."""
NOTHING = "nothing relevant found; the nearest are:"


@dataclass(frozen=True)
class Hit:
    """One hit: a file, with its score."""

    rank: int
    item: Item
    modality: str
    """Modality of the matching vector."""
    score: float
    """Cosine of the query and the nearest vector of the file."""
    match: float | None = None
    """Share of unrelated queries whose best hit of this kind in this folder scores lower; 1 for a copy of the query.
    None if hits are ranked by cosine."""
    start: float | None = None
    end: float | None = None
    """End of the matching part in seconds, if the file has several vectors."""
    copies: tuple[str, ...] = ()
    """Paths of near copies, as far as they are among the nearest files, `index.CANDIDATES` for each requested hit."""

    @property
    def value(self) -> str:
        """The match, or the cosine if there is no match, as displayed."""
        if self.match is None:
            return f"{self.score:.3f}"
        return f"{self.likelihood} {math.floor(100 * self.match) / 100:.2f}"  # rounded up, it could contradict the word

    @property
    def at(self) -> str:
        """Start of the matching part, as 1:15 or 1:01:15; "" for the whole file."""
        if self.start is None:
            return ""
        minutes, seconds = divmod(int(self.start), 60)
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"

    @property
    def likelihood(self) -> str | None:
        """The match as a word: likely, possible or unlikely."""
        return None if self.match is None else likelihood(self.match)

    def to_dict(self) -> dict[str, Any]:
        """The hit as a JSON dictionary, the same in every interface."""
        known = {name: getattr(self, name) for name in ("modality", "match", "likelihood", "score", "start", "end")}
        about = self.item.to_dict()
        head = {"rank": self.rank, "path": about.pop("path"), "kind": about.pop("kind")}
        return {**head, **known, "copies": [*map(as_text, self.copies)], **about}

    def __str__(self) -> str:
        return f"{self.rank}  {self.value}  {self.item.modality}  {self.item.path}{f' at {self.at}' * bool(self.at)}"


@dataclass(frozen=True)
class Results(Sequence[Hit]):
    """Hits of a query, best first."""

    hits: tuple[Hit, ...]
    compared: int
    """Number of files that passed the filters."""
    relevant: bool | None = None
    """Whether the best match is at least `RELEVANT`; None if hits are ranked by cosine."""

    @property
    def heading(self) -> str | None:
        """Line to show above the hits if none is relevant."""
        return NOTHING if self.relevant is False and self.hits else None

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: Any) -> Any:
        return self.hits[place]

    def to_dict(self) -> dict[str, Any]:
        """The results as a JSON dictionary."""
        hits = [hit.to_dict() for hit in self.hits]
        return {"hits": hits, "compared": self.compared, "relevant": self.relevant, "heading": self.heading}


def ranked(
    banks: Banks, query: QueryVector, found: dict[str, Neighbours]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows of the matrix by z, best first; their cosines; and their matches, each capped at the one before.

    If any modality has no matches, the rows are sorted by cosine, and the matches are None.
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


def grouped(matrix: Matrix, rows: np.ndarray, collapse: bool) -> list[list[int]]:
    """Places in ``rows`` of the best row of each file, best first; near copies share a group."""
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
    """(n,) bool: rows of the files that satisfy a condition."""
    ids, places = matrix.files
    return np.isin(ids, store.ids(sql, parameters), assume_unique=True)[places]


def mask_of(store: Store, matrix: Matrix, only: Collection[str], where: Condition | None) -> np.ndarray | None:
    """(n,) bool: rows that pass the filters; None = all.

    Args:
        only: modalities of the vectors, "video" for all vectors of videos; empty = all.
    """
    masks = [] if where is None else [rows_of(store, matrix, where.sql, where.params)]
    if only:
        mask = np.isin(matrix.modality, [code for code, key in enumerate(store.kinds) if key in only])
        masks.append(mask | rows_of(store, matrix, "modality = 'video'") if "video" in only else mask)
    return np.logical_and.reduce(masks) if masks else None
