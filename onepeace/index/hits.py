"""Hits of a search, as every interface shows them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepeace.index.hints import Suggestion
from onepeace.index.items import Item, as_text
from onepeace.index.match import WEAK, WORDS, level

NAMED = "named"
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
    """Share of unrelated queries whose best hit of this kind in this index scores lower (match.py); 1 for a copy of the
    query. None if hits are ranked by cosine."""
    named: bool = False
    """Whether the file comes first because few files have all words of the query, as it has."""
    lifted: bool = False
    """Whether the likelihood is one level above the match, as the file has all words of the query, like many."""
    start: float | None = None
    end: float | None = None
    """End of the matching part in seconds, if the file has several vectors."""
    copies: tuple[str, ...] = ()
    """Paths of near copies, as far as they are among the nearest files (`search.VECTORS_PER_HIT`)."""
    words: tuple[str, ...] = ()
    """Words of the query that the name, the caption or the metadata of the file has; empty if there are none."""

    @property
    def value(self) -> str:
        """The match as displayed, with a number if it is likely or possible; or the cosine if there is no match."""
        if self.match is None:
            return f"{self.score:.3f}"
        if self.likelihood in (WEAK, NAMED):
            return self.likelihood
        return f"{self.likelihood} {math.floor(100 * self.match) / 100:.2f}"  # rounded up, it could contradict the word

    @property
    def likelihood(self) -> str | None:
        """The match as a word: likely, possible or weak, or `NAMED` for a weak file that comes first by its words."""
        if self.match is None:
            return None
        word = WORDS[level(np.array(self.match), self.lifted)]
        return NAMED if self.named and word == WEAK else word

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
            "lifted": self.lifted,
            "score": self.score,
            "start": self.start,
            "end": self.end,
            "words": [*self.words],
            "copies": [*map(as_text, self.copies)],
            **file_fields,
        }

    def __str__(self) -> str:
        line = f"{self.rank}  {self.value}  {self.item.modality}  {self.item.path}"
        return f"{line} at {self.at}" if self.at else line


@dataclass(frozen=True)
class Results(Sequence[Hit]):
    """Hits of a query, best first."""

    hits: tuple[Hit, ...]
    compared: int
    """Number of files that passed the filters."""
    relevant: bool | None = None
    """Whether a file of any kind that passes the filters has a match of at least `RELEVANT`, or all words of the query;
    None if hits are ranked by cosine."""
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
