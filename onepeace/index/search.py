"""The steps from a query vector to a page of hits, and these as every interface shows them.

`Search` runs them: the nearest rows of each modality -> all of them in one order -> one group for each file and its
near copies -> the groups of the page -> their files.

Words are evidence by their rarity. A file that has all words of the query comes first if few files have them
(`WordSearch.are_rare`); if many have, its words count as much as two standard deviations of z among the weak files, and
decide between equal ones.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from onepeace.index.hints import Suggestion
from onepeace.index.items import Item, as_text
from onepeace.index.match import LIKELY, POSSIBLE, RELEVANT, SEVERAL, WEAK, WORDS, Scale, level, worth
from onepeace.index.query import Allowed, QueryVector, SearchOptions, rows_of_files
from onepeace.index.words import WordSearch

if TYPE_CHECKING:
    from onepeace.index.state import State

NAMED = "named"
ALIKE = "alike"
NOTHING = "nothing relevant found; the nearest are:"
POOL = 200
"""Number of files that are sorted by date or path together: first the best 200, then the next 200, and so on."""
VECTORS_PER_HIT = 4
"""Vectors fetched per requested hit, as several may belong to one file."""
GROWTH = 4
"""Factor by which more vectors are fetched if they were too few."""
NEAR_COPY = 0.997
"""Minimum cosine of two files of one kind to be shown as near copies: different printed pages reach 0.996."""
SAME = 0.9999
"""Minimum cosine of a query and a file of its kind for the file to count as a copy of it."""
WORDS_Z = 2.0
"""Standard deviations that common words count as much as: a caption is seldom wrong, and a folder's name may be that of
other things than it has."""
BLOCK = 256
"""Files compared at once with those ranked above them, to find near copies."""


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
    """Share of unrelated queries whose best hit of this kind in this index scores lower (match.py); 1 for a copy of the
    query. None if a modality has no unrelated queries."""
    named: bool = False
    """Whether the file has all words of the query."""
    alike: bool = False
    """Whether it is weak, and more of the same as the likely hits (match.py)."""
    rare: bool = False
    """Whether it comes first, as few files have them."""
    start: float | None = None
    end: float | None = None
    """End of the matching part in seconds, if the file has several vectors."""
    copies: tuple[str, ...] = ()
    """Paths of near copies, as far as they are among the nearest files (`VECTORS_PER_HIT`)."""
    words: tuple[str, ...] = ()
    """Words of the query that the name, the caption or the metadata of the file has; empty if there are none."""

    @property
    def kind(self) -> str:
        """Kind of the file: image, audio, text or video."""
        return self.item.kind

    @property
    def value(self) -> str:
        """The match as displayed, with a number if it is likely or possible; or the cosine if there is no match."""
        if self.match is None:
            return f"{self.score:.3f}"
        if self.likelihood in (WEAK, ALIKE, NAMED):
            return self.likelihood
        return f"{self.likelihood} {math.floor(100 * self.match) / 100:.2f}"  # rounded up, it could contradict the word

    @property
    def likelihood(self) -> str | None:
        """The match as a word: likely, possible or weak; of weak files, `NAMED` with all words, and `ALIKE`."""
        if self.match is None:
            return None
        word = WORDS[level(np.array(self.match))]
        if word != WEAK:
            return word
        if self.named:
            return NAMED
        return ALIKE if self.alike else WEAK

    @property
    def at(self) -> str:
        """Start of the matching part, as 1:15 or 1:01:15; "" for the whole file."""
        if self.start is None:
            return ""
        minutes, seconds = divmod(int(self.start), 60)
        if minutes < 60:
            return f"{minutes}:{seconds:02}"
        return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"

    def to_dict(self) -> dict[str, Any]:
        """The hit as a JSON dictionary, the same in every interface."""
        file_fields = self.item.to_dict()
        return {
            "rank": self.rank,
            "path": file_fields.pop("path"),
            "kind": file_fields.pop("kind"),
            "modality": self.modality,
            "match": self.match,
            "likelihood": self.likelihood,
            "named": self.named,
            "rare": self.rare,
            "score": self.score,
            "start": self.start,
            "end": self.end,
            "words": [*self.words],
            "copies": [*map(as_text, self.copies)],
            **file_fields,
        }

    def __str__(self) -> str:
        line = f"{self.rank}  {self.value}  {self.item.kind}  {self.item.path}"
        return f"{line} at {self.at}" if self.at else line


@dataclass(frozen=True)
class Results(Sequence[Hit]):
    """Hits of a query, best first."""

    hits: tuple[Hit, ...]
    compared: int
    """Number of files that passed the filters."""
    relevant: bool | None = None
    """Whether a file of any kind that passes the filters has a match of at least `RELEVANT`, or all words of the query;
    None if a modality has no unrelated queries."""
    hints: tuple[str, ...] = ()
    """Lines for the user about the query, such as a word that may be misspelt."""
    suggestion: Suggestion | None = None
    """The query that the hints propose, if there is one."""

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
        return {
            "hits": [hit.to_dict() for hit in self.hits],
            "compared": self.compared,
            "relevant": self.relevant,
            "heading": self.heading,
            "hints": [*self.hints],
            "suggestion": None if self.suggestion is None else self.suggestion._asdict(),
        }


class Candidates(NamedTuple):
    """Rows of the matrix that are near the query, in the order of their files, c of them."""

    rows: np.ndarray
    """(c,) int64."""
    cosines: np.ndarray
    """(c,) float32."""
    matches: np.ndarray | None
    """(c,) float64; None if the rows are ordered by cosine."""
    are_close: np.ndarray
    """(c,) bool: whether they are possible, or nearly so (`Scale.are_close`)."""
    have_words: np.ndarray
    """(c,) bool: whether their files have all words of the query."""
    are_last: np.ndarray
    """(c,) bool: whether they are the last of a list that may go on."""


class Search:
    """One search of an index.

    Args:
        state: of the index.
        query: the query as a vector.
        words: its words.
        allowed: the rows of the matrix that may be hits.
        options: order and page.
    """

    def __init__(
        self,
        state: "State",
        query: QueryVector,
        words: WordSearch,
        allowed: Allowed,
        options: SearchOptions,
    ) -> None:
        self.store = state.store
        self.matrix = state.matrix
        self.vector_database = state.vector_database
        self.query = query
        self.words = words
        self.allowed = allowed
        self.options = options
        self.scale = Scale(state.banks, query)
        end = options.offset + options.top
        self.num_ordered = end if options.sort == "match" else -(-end // POOL) * POOL
        """Number of groups that must be in their final order by match: up to the end of the page, or of its pool."""

    def results(self) -> Results:
        """The page of hits, and what they were chosen from."""
        if not self.allowed.num_files:
            return Results(hits=(), compared=0)
        candidates, groups = self._ordered()
        is_relevant = None
        if candidates.matches is not None:
            is_relevant = bool(candidates.have_words.any() or candidates.matches.max() >= RELEVANT)
        return Results(
            hits=self._page(candidates, groups),
            compared=self.allowed.num_files,
            relevant=is_relevant,
        )

    def _ordered(self) -> tuple[Candidates, list[list[int]]]:
        """Candidates and their groups, of which the first `num_ordered` are final: more rows change nothing there.

        A group has the places among the candidates of the best row of a file, then of its near copies.
        """
        count = VECTORS_PER_HIT * self.num_ordered
        while True:
            candidates = self._candidates(count)
            is_hit = self._reach_minimum(candidates)
            groups = self._groups(candidates.rows, np.flatnonzero(is_hit))
            last_places = np.flatnonzero(candidates.are_last)
            if not len(last_places) or count >= len(self.matrix):  # every row was fetched
                return candidates, groups
            # The rows that were not fetched come after the last one of their list, and match no better.
            last_groups = groups[self.num_ordered - 1 : self.num_ordered]
            is_full = any(group[0] <= last_places[0] for group in last_groups)
            if is_full or not is_hit[last_places].any():
                return candidates, groups
            count *= GROWTH

    @cached_property
    def _masks(self) -> list[tuple[bool, np.ndarray | None]]:
        """Whether files have all words of the query, and the allowed rows of these files, (n,) bool; None = all."""
        allowed = self.allowed.rows
        if not len(self.words.file_ids):
            return [(False, allowed)]
        have_words = rows_of_files(self.matrix, self.words.file_ids)
        masks = [(True, have_words), (False, ~have_words)]
        return [(has_words, mask if allowed is None else mask & allowed) for has_words, mask in masks]

    def _candidates(self, count: int) -> Candidates:
        """Up to ``count`` rows of each modality in each mask: those with rare words first, then by `worth`.

        If any modality has no matches, the rows are ordered by cosine and have no matches.
        """
        parts = []
        has_matches = True
        for has_words, mask in self._masks:
            nearest = self.matrix.nearest(self.query.vector, count, mask, self.vector_database)
            for modality, (rows, cosines) in nearest.items():
                z_scores, matches = self.scale.score(modality, cosines)
                if matches is None:
                    has_matches = False
                    matches = np.zeros(len(rows))
                if [part.bank for part in self.query.parts] == [modality]:
                    is_copy = cosines >= SAME
                    z_scores = np.where(is_copy, np.inf, z_scores)
                    matches = np.where(is_copy, 1.0, matches)
                z_scores = z_scores + WORDS_Z * has_words
                are_close = self.scale.are_close(modality, cosines)
                are_last = np.arange(1, len(rows) + 1) == count
                parts.append((rows, cosines, z_scores, matches, are_close, np.full(len(rows), has_words), are_last))
        columns = map(np.concatenate, zip(*parts, strict=True))
        rows, cosines, z_scores, matches, are_close, have_words, are_last = columns
        keys = [-key for key in worth(matches, z_scores)] if has_matches else [-cosines]
        order = np.lexsort((rows, self._places_by_path(rows, cosines), *keys, ~(have_words & self.words.are_rare)))
        return Candidates(
            rows=rows[order],
            cosines=cosines[order],
            matches=matches[order] if has_matches else None,
            are_close=are_close[order],
            have_words=have_words[order],
            are_last=are_last[order],
        )

    def _places_by_path(self, rows: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """(c,): places by path of the files with the same cosine, so that none is first as it was indexed first."""
        _, numbers, counts = np.unique(cosines, return_inverse=True, return_counts=True)
        are_equal = counts[numbers] > 1
        places = np.zeros(len(rows), int)
        if are_equal.any():
            ids = self.matrix.file[rows[are_equal]].tolist()
            by_path = sorted(self.store.items_of(ids).values(), key=attrgetter("path"))
            place_of = {item.id: place for place, item in enumerate(by_path)}
            places[are_equal] = [place_of[id_] for id_ in ids]
        return places

    def _reach_minimum(self, candidates: Candidates) -> np.ndarray:
        """(c,) bool: whether a row has the minimum match, or is of a file with rare words."""
        minimum = self.options.min_match
        if minimum is None or candidates.matches is None:
            return np.ones(len(candidates.rows), bool)
        return (candidates.matches >= minimum) | (candidates.have_words & self.words.are_rare)

    def _groups(self, rows: np.ndarray, places: np.ndarray) -> list[list[int]]:
        """Groups of the rows at some places, best first: a file each, and its near copies if `collapse`."""
        _, first = np.unique(self.matrix.file[rows[places]], return_index=True)
        best = places[np.sort(first)]  # of each file
        if not self.options.collapse:
            return [[place] for place in best.tolist()]
        groups = {place: [place] for place in best.tolist()}
        for place, other in self._near_copies(rows, best):
            if place in groups and other in groups:
                groups[other] += groups.pop(place)
        return list(groups.values())

    def _near_copies(self, rows: np.ndarray, places: np.ndarray) -> list[tuple[int, int]]:
        """Pairs of places whose rows are near copies, of files of one kind: a place, then one before it."""
        vectors = self.matrix.vectors[rows[places]]
        modality = self.matrix.modality[rows[places]]
        pairs: list[tuple[int, int]] = []
        for start in range(0, len(places), BLOCK):
            block = vectors[start : start + BLOCK]
            are_copies = np.tril(block @ vectors[: start + len(block)].T >= NEAR_COPY, start - 1)
            are_copies &= modality[start : start + BLOCK, None] == modality[: start + BLOCK]
            later, earlier = np.nonzero(are_copies)
            pairs += zip(places[start + later].tolist(), places[earlier].tolist(), strict=True)
        if not pairs:
            return []
        file_of = self.matrix.file[rows].tolist()
        in_pairs = {*itertools.chain(*pairs)}
        kinds = self.store.kinds_of({file_of[place] for place in in_pairs})
        return [(place, other) for place, other in pairs if kinds.get(file_of[place]) == kinds.get(file_of[other])]

    def _page(self, candidates: Candidates, groups: list[list[int]]) -> tuple[Hit, ...]:
        """The hits from `offset` on, `top` of them."""
        page = slice(self.options.offset, self.options.offset + self.options.top)
        file_of = self.matrix.file[candidates.rows].tolist()
        are_alike = self._are_alike(candidates, groups)
        if self.options.sort != "match":
            groups = self._sorted(candidates, groups, are_alike)
        groups = groups[page]
        items = self.store.items_of({file_of[place] for group in groups for place in group})
        words_by_file = self.words.words_by_file([file_of[group[0]] for group in groups])
        hits = []
        for rank, (place, *copies) in enumerate(groups, self.options.offset + 1):
            item = items[file_of[place]]
            span = self.matrix.span(int(candidates.rows[place]))
            has_words = bool(candidates.have_words[place])
            hits.append(
                Hit(
                    rank=rank,
                    item=item,
                    modality=span.modality,
                    score=float(candidates.cosines[place]),
                    match=None if candidates.matches is None else float(candidates.matches[place]),
                    named=has_words,
                    alike=bool(are_alike[place]),
                    rare=has_words and self.words.are_rare,
                    start=span.start,
                    end=span.end,
                    copies=tuple(items[file_of[copy]].path for copy in copies),
                    words=words_by_file.get(item.id, ()),
                )
            )
        return tuple(hits)

    def _are_alike(self, candidates: Candidates, groups: list[list[int]]) -> np.ndarray:
        """(c,) bool: whether candidates are weak, and more of the same as `SEVERAL` likely files of their kind."""
        if candidates.matches is None:
            return np.zeros(len(candidates.rows), bool)
        modality = self.matrix.modality[candidates.rows]
        leaders = np.array([group[0] for group in groups], np.int64)
        are_likely = candidates.matches[leaders] >= LIKELY
        num_likely = np.bincount(modality[leaders[are_likely]], minlength=len(self.store.modalities))
        return candidates.are_close & (candidates.matches < POSSIBLE) & (num_likely >= SEVERAL)[modality]

    def _sorted(self, candidates: Candidates, groups: list[list[int]], are_alike: np.ndarray) -> list[list[int]]:
        """The groups by date, newest first, or by path, inside each pool of `POOL` files.

        Weak ones would hide the best, so they are left out, but for those alike or with all words, and unless all are
        weak or a minimum was given.
        """
        if self.options.min_match is None and candidates.matches is not None:
            is_kept = (candidates.matches >= POSSIBLE) | are_alike | candidates.have_words
            groups = [group for group in groups if is_kept[group[0]]] or groups
        groups = groups[: self.num_ordered]
        rows = candidates.rows[[group[0] for group in groups]]
        leaders = self.matrix.file[rows].tolist()
        items = self.store.items_of(leaders)

        def key(number: int) -> tuple[int, float, str]:
            item = items[leaders[number]]
            age = -(item.date or 0.0) if self.options.sort == "date" else 0.0
            return number // POOL, age, item.path

        return [groups[number] for number in sorted(range(len(groups)), key=key)]
