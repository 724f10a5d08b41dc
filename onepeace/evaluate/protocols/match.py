"""Calibration of the match: is it high when the first hit is right, and low when the answers are removed?

Each query is searched twice: in the whole pool, and in the pool without its answers, where no item is right. The match
is that of an index (onepeace/index/ranking.py), which is not fitted; sources whose pictures or sounds were not in the
training data show what users can expect.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, encode
from onepeace.hub.resolve import resolve
from onepeace.index.calibrate import FILE, TEXTS, texts_of
from onepeace.index.query import EncodedPart, QueryVector, bank_of_text
from onepeace.index.ranking import POSSIBLE, RELEVANT, Banks

FIRST = 5
"""A query is answered if a right item is among this many first hits."""
FEWEST = 5
"""Sources with fewer answered queries are not reported separately."""


@dataclass(frozen=True, kw_only=True)
class QuerySource(Items):
    """Items of one data set, and queries with right answers among them."""

    queries: Literal["labels", "names", "captions", "items", "none"] = "labels"
    """labels: each class name, answered by all items of the class, in any source. names: the same with first captions.
    captions: each first caption, answered by its item. items: each item, answered by the other items of its class.
    none: no queries, the items are distractors."""

    def samples(self, root: Path) -> list[Sample]:
        return self.read_labelled(root) if self.queries in ("labels", "items") else self.read(root, "text")

    def name(self, sample: Sample) -> str:
        """Name of the query that the item answers; "" for none."""
        named = {"labels": sample.label, "items": sample.label, "names": next(iter(sample.captions), "")}
        return str(named.get(self.queries, "")).casefold()


class Question(NamedTuple):
    """A query, its answers and the items that it is searched among."""

    query: QueryVector
    answers: NDArray[np.bool_]
    """(n,)"""
    inside: NDArray[np.bool_]
    """(n,)"""
    sources: frozenset[str]


class QueryResult(NamedTuple):
    """Result of one query."""

    answered: bool
    """Whether a right item is among the first hits."""
    chance: float
    """Chance level of `answered`."""
    match: float
    """Match of the first hit, which later hits do not exceed."""
    without: float
    """Match of the first hit in the pool without the answers."""


@dataclass(frozen=True, kw_only=True)
class Match(EvaluationProtocol):
    """Share of answered queries whose match is likely or possible (kept), share of queries without answers whose match
    is not (turned away), the shares of both below "nothing relevant", and the area under the curve; by source."""

    modality: str = ""
    sources: dict[str, QuerySource]
    """Sources by name; together they are the pool that is searched."""
    calibration: str | None = None
    """A calibration file, or a model whose folder has one. None: only texts, which are encoded now."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("sources is empty")
        if self.calibration is None and any(source.queries == "items" for source in self.sources.values()):
            raise UserError("queries that are items need a calibration, a file or a model that has one")

    @property
    def sides(self) -> tuple[Items, ...]:
        return tuple(self.sources.values())

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = {name: source.samples(root) for name, source in self.sources.items()}
        banks = _banks(self.calibration, embedder)
        items = np.concatenate([source.encode(embedder, samples[name]) for name, source in self.sources.items()])
        modalities = [source.modality for name, source in self.sources.items() for _ in samples[name]]
        questions = self.asked(embedder, samples, items)
        banks.add(items, modalities)
        results = [_result(one, items, np.array(modalities), banks) for one in questions]
        figures = []
        for name in ("all", *self.sources):
            own = [what for one, what in zip(questions, results, strict=True) if name == "all" or name in one.sources]
            if sum(what.answered for what in own) >= FEWEST:
                figures += _figures(name, own)
        if not figures:
            raise UserError(
                f"fewer than {FEWEST} of {len(questions)} queries have a right item among the first {FIRST} hits"
            )
        return figures

    def asked(self, embedder: Any, samples: dict[str, list[Sample]], items: NDArray) -> list[Question]:
        """The queries of all sources; a name that several sources have is one query."""
        rows = [(source, sample) for source, own in samples.items() for sample in own]
        sources = np.array([source for source, _ in rows])
        kinds = np.array([self.sources[source].queries for source, _ in rows])
        names = np.array([self.sources[source].name(sample) for source, sample in rows])
        numbers, whole, named = (
            np.arange(len(rows)),
            np.ones(len(rows), dtype=bool),
            np.isin(kinds, ("labels", "names")),
        )
        # Each text, the rows that answer it, and the rows that it comes from.
        texts = [(name, names == name, named & (names == name)) for name in dict.fromkeys(names[named].tolist())]
        captioned = [(rows[row][1].captions[0], numbers == row) for row in np.flatnonzero(kinds == "captions")]
        texts += [(caption, own, own) for caption, own in captioned]
        asked = []
        vectors: Iterable[NDArray] = encode(embedder, "text", [text for text, _, _ in texts]) if texts else []
        for (text, answers, own), vector in zip(texts, vectors, strict=True):
            query = QueryVector.of([EncodedPart(bank_of_text(text), vector, 1.0)])
            asked.append(Question(query, answers, whole, frozenset(sources[own].tolist())))
        for row in np.flatnonzero(kinds == "items"):
            inside = numbers != row
            answers = (names == names[row]) & inside
            if answers.any():
                query = QueryVector.of([EncodedPart(self.sources[sources[row]].modality, items[row], 1.0)])
                asked.append(Question(query, answers, inside, frozenset([str(sources[row])])))
        return asked


def _result(asked: Question, items: NDArray, modalities: NDArray, banks: Banks) -> QueryResult:
    cosines = items @ asked.query.vector
    z, match = np.zeros(len(items)), np.zeros(len(items))
    for modality in dict.fromkeys(modalities.tolist()):
        own = modalities == modality
        z[own], found = banks.score(asked.query, modality, cosines[own])
        if found is None:
            raise UserError(f"the calibration has no {asked.query.parts[0].bank} to compare with {modality}")
        match[own] = found
    z[~asked.inside] = -np.inf
    hits = np.lexsort((asked.answers, -z))[:FIRST]  # among ties, the wrong ones come first
    others = np.where(asked.answers, -np.inf, z)
    chance = 1 - (1 - asked.answers.mean() / asked.inside.mean()) ** FIRST
    first = float(match[hits[0]])
    return QueryResult(bool(asked.answers[hits].any()), float(chance), first, float(match[np.argmax(others)]))


def _figures(name: str, results: Sequence[QueryResult]) -> list[Figure]:
    answered = [what for what in results if what.answered]
    right, without = np.array([what.match for what in answered]), np.array([what.without for what in results])
    none = np.sort(without)
    auc = (np.searchsorted(none, right, "left") + np.searchsorted(none, right, "right")) / (2 * len(none))
    rows: dict[str, tuple[Any, Any]] = {
        f"answered by the first {FIRST}": (
            [what.answered for what in results],
            np.mean([what.chance for what in results]),
        ),
        "AUC": (auc, 0.5),
        "kept": (right >= POSSIBLE, 1 - POSSIBLE),
        "turned away": (without < POSSIBLE, POSSIBLE),
        "nothing relevant, of right answers": (right < RELEVANT, RELEVANT),
        "nothing relevant, without an answer": (without < RELEVANT, RELEVANT),
    }
    return [
        Figure.mean_of(f"{name}: {metric}", np.asarray(values, dtype=float), float(chance))
        for metric, (values, chance) in rows.items()
    ]


def _banks(calibration: str | None, embedder: Any) -> Banks:
    if calibration is None:
        return Banks({bank: encode(embedder, "text", texts_of(bank)) for bank in TEXTS})
    path = Path(os.path.expandvars(calibration)).expanduser()
    path = path if path.is_file() else resolve(calibration) / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; make it with: onepeace calibrate INDEX")
    return Banks.load(path.read_bytes())
