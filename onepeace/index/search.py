"""The steps from a query vector to a page of hits.

`search` runs them: the nearest rows of each modality -> all of them in one order -> one group for each file and its
near copies -> the groups of the page -> their files, loaded and verified.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from onepeace.errors import UserError
from onepeace.index.banks import Banks
from onepeace.index.database import Damaged
from onepeace.index.hits import Hit, Results
from onepeace.index.items import Item, Span
from onepeace.index.mask import rows_of_files
from onepeace.index.match import POSSIBLE, RELEVANT, Scale
from onepeace.index.matrix import Matrix
from onepeace.index.query import QueryVector
from onepeace.index.rank import Candidates, FetchedRows, Group, group_files, rank
from onepeace.index.store import Store
from onepeace.index.words import WordSearch

POOL = 200
"""Number of files that are sorted by date or path together: first the best 200, then the next 200, and so on."""
VECTORS_PER_HIT = 4
"""Vectors fetched per requested hit, as several may belong to one file."""
GROWTH = 4
"""Factor by which more vectors are fetched if they were too few."""
CHOICES = {"sort": ("match", "date", "path"), "rank": ("match", "raw")}
"""Values of options."""


@dataclass(kw_only=True)
class SearchOptions:
    """Which hits to show, and in which order; see `Index.search`.

    Raises:
        UserError: a value is out of its range.
    """

    top: int = 10
    offset: int = 0
    sort: str = "match"
    rank: str = "match"
    min_match: float | None = None
    collapse: bool = True

    def __post_init__(self) -> None:
        are_whole = isinstance(self.top, Integral) and isinstance(self.offset, Integral)
        if not are_whole or self.top < 1 or self.offset < 0:
            raise UserError(f"top is {self.top} and offset {self.offset}; give whole numbers from 1 and from 0")
        self.top = int(self.top)
        self.offset = int(self.offset)
        if self.min_match is not None and not 0 <= self.min_match <= 1:
            raise UserError(f"min_match is {self.min_match}; give a number from 0 to 1")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"{name} is {getattr(self, name)!r}; it can be {', '.join(choices)}")

    @property
    def num_ordered(self) -> int:
        """Number of groups that must be in their final order by match: up to the end of the page, or of its pool."""
        end = self.offset + self.top
        if self.sort == "match":
            return end
        num_pools = -(-end // POOL)
        return num_pools * POOL


class Searched(NamedTuple):
    """What a search reads: one state of an index."""

    store: Store
    matrix: Matrix
    banks: Banks
    service: Any
    """Vector database that proposes candidates, or None."""


def search(
    searched: Searched,
    query: QueryVector,
    allowed: np.ndarray | None,
    options: SearchOptions,
    words: WordSearch,
) -> Results:
    """The hits of an encoded query.

    Args:
        searched: the state of the index.
        query: the query as a vector.
        allowed: (n,) bool, the rows of the matrix that may be hits; None = all.
        options: order and page.
        words: the words of the query; files that have all of them come first, unless hits are ranked by plain cosine.

    Raises:
        Damaged: a hit fails its checksum.
    """
    matrix = searched.matrix
    first_ids = words.file_ids if options.rank == "match" else np.empty(0, np.int64)
    tiers = tiers_of(matrix, allowed, first_ids)
    candidates, groups = ordered_groups(searched, query, tiers, options)
    num_with_words = count_first(matrix, candidates, groups, first_ids)
    groups = drop_below(groups, candidates.matches, options, num_with_words)
    hits = hits_of_page(searched, candidates, groups, words, options)
    is_relevant = None
    if candidates.matches is not None:
        is_relevant = num_with_words > 0 or bool(candidates.matches.max() >= RELEVANT)
    return Results(hits=hits, compared=count_files(matrix, allowed), relevant=is_relevant)


def tiers_of(
    matrix: Matrix,
    allowed: np.ndarray | None,
    first_ids: np.ndarray,
) -> list[np.ndarray | None]:
    """Masks of the rows to order, one after the other: those of the files that come first, then the rest."""
    if not len(first_ids):
        return [allowed]
    is_first = rows_of_files(matrix, first_ids)
    if allowed is None:
        return [is_first, ~is_first]
    return [allowed & is_first, allowed & ~is_first]


def ordered_groups(
    searched: Searched, query: QueryVector, tiers: Sequence[np.ndarray | None], options: SearchOptions
) -> tuple[Candidates, list[Group]]:
    """Candidates and their groups, of which the first `num_ordered` are final: more rows would change nothing there."""
    matrix = searched.matrix
    scale = Scale(searched.banks, query) if options.rank == "match" else None
    needed = options.num_ordered
    count = VECTORS_PER_HIT * needed
    while True:
        fetched = nearest(searched, query.vector, count, tiers)
        candidates = rank(scale, query, fetched)
        groups = group_files(matrix, candidates.rows, options.collapse)
        last_rows = [near.rows[-1] for near in fetched if len(near.rows) == count]
        if not last_rows or count >= len(matrix):  # every row was fetched
            return candidates, groups
        # The rows that were not fetched come after the last one of their modality and tier.
        first_uncertain = np.flatnonzero(np.isin(candidates.rows, last_rows))[0]
        if len(groups) >= needed and groups[needed - 1][0] <= first_uncertain:
            return candidates, groups
        count *= GROWTH


def nearest(
    searched: Searched, vector: np.ndarray, count: int, tiers: Sequence[np.ndarray | None]
) -> list[FetchedRows]:
    """Up to ``count`` rows of each modality in each tier that are nearest to a unit vector (E,)."""
    fetched = []
    for tier, mask in enumerate(tiers):
        by_modality = searched.matrix.nearest(vector, count, mask, searched.service)
        for modality, (rows, cosines) in by_modality.items():
            fetched.append(FetchedRows(tier=tier, modality=modality, rows=rows, cosines=cosines))
    return fetched


def count_first(
    matrix: Matrix,
    candidates: Candidates,
    groups: list[Group],
    first_ids: np.ndarray,
) -> int:
    """Number of groups that are led by a file of those that come first."""
    leaders = [group[0] for group in groups]
    files = matrix.file[candidates.rows[leaders]]
    return int(np.isin(files, first_ids).sum())


def drop_below(
    groups: list[Group], matches: np.ndarray | None, options: SearchOptions, num_with_words: int
) -> list[Group]:
    """The groups that reach the minimum match.

    If hits are sorted by date or path, unlikely ones would hide the best, so they are dropped, unless they are among
    the first ``num_with_words``, all are unlikely, or a minimum was given.
    """
    minimum = options.min_match
    if matches is None:
        return groups
    if minimum is None:
        are_all_unlikely = matches.max() < POSSIBLE
        if options.sort == "match" or are_all_unlikely:
            return groups
        likely = [group for group in groups[num_with_words:] if matches[group[0]] >= POSSIBLE]
        return groups[:num_with_words] + likely
    return [group for group in groups if matches[group[0]] >= minimum]


def hits_of_page(
    searched: Searched,
    candidates: Candidates,
    groups: list[Group],
    words: WordSearch,
    options: SearchOptions,
) -> tuple[Hit, ...]:
    """The hits from `offset` on, `top` of them."""
    groups = groups[: options.num_ordered]
    if options.sort == "match":
        groups = groups[options.offset :]
    file_of = searched.matrix.file[candidates.rows].tolist()
    ids = {file_of[place] for group in groups for place in group}
    files = searched.store.intact(sorted(ids))
    if options.sort != "match":
        leaders = [files[file_of[group[0]]][0] for group in groups]
        order = sorted_in_pools(leaders, options.sort)
        page = slice(options.offset, options.offset + options.top)
        groups = [groups[number] for number in order[page]]
    words_by_file = words.words_by_file([file_of[group[0]] for group in groups])
    hits = []
    for rank_of_hit, (place, *copies) in enumerate(groups, options.offset + 1):
        item = checked_item(searched, files[file_of[place]], int(candidates.rows[place]))
        words_of_file = words_by_file.get(item.id, ())
        hits.append(
            _hit(
                searched,
                candidates,
                place,
                rank=rank_of_hit,
                item=item,
                copies=tuple(files[file_of[copy]][0].path for copy in copies),
                words=words_of_file,
                has_all_words=0 < len(words_of_file) == len(words.expressions),
            )
        )
    return tuple(hits)


def sorted_in_pools(items: Sequence[Item], sort: str) -> list[int]:
    """Order of the files by date, newest first, or by path, inside each pool of `POOL` files."""

    def key(number: int) -> tuple[int, float, str]:
        item = items[number]
        age = -(item.date or 0.0) if sort == "date" else 0.0
        return number // POOL, age, item.path

    return sorted(range(len(items)), key=key)


def checked_item(searched: Searched, file: tuple[Item, list[Span], np.ndarray], row: int) -> Item:
    """The item of a file.

    Raises:
        Damaged: the row of the matrix is none of the file's vectors in the database.
    """
    item, spans, vectors = file
    span = searched.matrix.span(row)
    same_span = [number for number, own_span in enumerate(spans) if own_span == span]
    vector = searched.matrix.vectors_of(row)
    is_same = (vectors[same_span] == vector).all(axis=1)
    if not is_same.any():
        raise Damaged(searched.store.folder, f"the matrix, at a vector of {item.path}")
    return item


def _hit(searched: Searched, candidates: Candidates, place: int, **fields: Any) -> Hit:
    """The hit at a place among the candidates; ``fields`` are those that do not depend on the row."""
    row = int(candidates.rows[place])
    span = searched.matrix.span(row)
    match = None
    if candidates.matches is not None:
        match = float(candidates.matches[place])
    return Hit(
        modality=span.modality,
        score=float(candidates.cosines[place]),
        match=match,
        start=span.start,
        end=span.end,
        **fields,
    )


def count_files(matrix: Matrix, allowed: np.ndarray | None) -> int:
    """Number of files with an allowed row."""
    if allowed is None:
        return matrix.num_files
    _, file_of_row = matrix.files
    return int(np.count_nonzero(np.bincount(file_of_row[allowed])))
