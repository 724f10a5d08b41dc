"""The order of the rows that a search has fetched, and the files and near copies among them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onepeace.index.match import Scale, level
from onepeace.index.matrix import Matrix
from onepeace.index.query import QueryVector

ALIKE = 0.98
"""Minimum cosine of two files of one kind to be shown as near copies."""
SAME = 0.9999
"""Minimum cosine of a query and a file of its kind for the file to count as a copy of it."""
BLOCK = 256
"""Files compared at once with those ranked above them, to find near copies."""

Group = list[int]
"""Places among the candidates: the best row of a file, then those of its near copies."""


class FetchedRows(NamedTuple):
    """The fetched rows of one modality in one tier, best first."""

    tier: int
    modality: str
    rows: np.ndarray
    """(k,) int64 rows of the matrix."""
    cosines: np.ndarray
    """(k,) float32."""


class Candidates(NamedTuple):
    """Rows of the matrix in the order of their files, c of them."""

    rows: np.ndarray
    """(c,) int64."""
    cosines: np.ndarray
    """(c,) float32."""
    matches: np.ndarray | None
    """(c,) float64; None if the rows are ordered by cosine."""


def rank(scale: Scale | None, query: QueryVector, fetched: Sequence[FetchedRows]) -> Candidates:
    """All rows in one order: by tier, then by the match as a word, then by z.

    Without a scale, or if any modality has no matches, the rows are ordered by tier and cosine, and have no matches.
    """
    if not fetched:
        return Candidates(
            rows=np.empty(0, np.int64),
            cosines=np.empty(0, np.float32),
            matches=None,
        )
    rows = np.concatenate([near.rows for near in fetched])
    cosines = np.concatenate([near.cosines for near in fetched])
    sizes = [len(near.rows) for near in fetched]
    tiers = np.repeat([near.tier for near in fetched], sizes)
    scores = None if scale is None else _scores(scale, query, fetched)
    if scores is None:
        order = np.lexsort((rows, -cosines, tiers))
        return Candidates(rows=rows[order], cosines=cosines[order], matches=None)
    z_scores, matches = scores
    order = np.lexsort((rows, -z_scores, -level(matches), tiers))
    return Candidates(rows=rows[order], cosines=cosines[order], matches=matches[order])


def _scores(
    scale: Scale,
    query: QueryVector,
    fetched: Sequence[FetchedRows],
) -> tuple[np.ndarray, np.ndarray] | None:
    """z-scores and matches of all fetched rows; None if a modality has no matches. A copy of the query has match 1."""
    z_scores = []
    matches = []
    for near in fetched:
        z_scores_of_rows, matches_of_rows = scale.score(near.modality, near.cosines)
        if matches_of_rows is None:
            return None
        if len(query.parts) == 1 and query.parts[0].bank == near.modality:
            is_copy = near.cosines >= SAME
            z_scores_of_rows = np.where(is_copy, np.inf, z_scores_of_rows)
            matches_of_rows = np.where(is_copy, 1.0, matches_of_rows)
        z_scores.append(z_scores_of_rows)
        matches.append(matches_of_rows)
    return np.concatenate(z_scores), np.concatenate(matches)


def group_files(matrix: Matrix, rows: np.ndarray, collapse: bool) -> list[Group]:
    """Places in ``rows`` of the best row of each file, best first; near copies share a group if ``collapse``."""
    _, first_places = np.unique(matrix.file[rows], return_index=True)
    best = np.sort(first_places)
    if not collapse:
        return [[place] for place in best.tolist()]
    vectors = matrix.vectors_of(rows[best])
    modality = matrix.modality[rows[best]]
    groups: dict[int, Group] = {}  # by the place of their first row in `best`
    for start in range(0, len(best), BLOCK):
        block = vectors[start : start + BLOCK]
        is_alike = block @ vectors[: start + len(block)].T >= ALIKE
        for i in range(start, start + len(block)):
            is_same_kind = modality[:i] == modality[i]
            earlier = np.flatnonzero(is_alike[i - start, :i] & is_same_kind)
            leader = next((place for place in earlier.tolist() if place in groups), i)
            groups.setdefault(leader, []).append(int(best[i]))
    return list(groups.values())
