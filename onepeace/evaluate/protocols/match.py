"""Calibration of the match: is it high when there is a right hit, and low when the answers are removed?

Each query is searched twice: in the whole pool, and in the pool without its answers, where no item is right. The match
is that of an index (onepeace/index/match.py), which is not fitted; sources whose pictures or sounds were not in the
training data show what users can expect.
"""

import os
from collections.abc import Mapping, Sequence
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
from onepeace.index.banks import CALIBRATION, TEXTS, Banks, texts_of
from onepeace.index.match import POSSIBLE, RELEVANT, Scale, level
from onepeace.index.query import EncodedPart, QueryVector, bank_of_text

FIRST = 5
"""A query is answered if a right item is among this many first hits."""
GAINS = 1 / np.log2(np.arange(2, 12))
"""Gain of a right item at each of the ten places that the NDCG looks at."""
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
        """The samples, each with what its query needs: a label or a text."""
        if self.queries in ("labels", "items"):
            return self.read_labelled(root)
        return self.read(root, "text")

    def name(self, sample: Sample) -> str:
        """Name of the query that the item answers; "" for none."""
        if self.queries in ("labels", "items"):
            return str(sample.label).casefold()
        if self.queries == "names" and sample.captions:
            return sample.captions[0].casefold()
        return ""


@dataclass(frozen=True)
class Pool:
    """The items of all sources, source after source; every array has a row for each of the n items."""

    samples: list[Sample]
    sources: NDArray[np.str_]
    """Name of the source."""
    queries: NDArray[np.str_]
    """`QuerySource.queries` of the source."""
    query_names: NDArray[np.str_]
    """`QuerySource.name` of the item."""
    modalities: NDArray[np.str_]
    vectors: NDArray
    """(n, E)"""

    @classmethod
    def of(cls, sources: Mapping[str, QuerySource], samples: Mapping[str, list[Sample]], vectors: NDArray) -> "Pool":
        """The pool of sources and of their samples, both by the names of the sources."""
        pool_samples: list[Sample] = []
        source_names: list[str] = []
        queries: list[str] = []
        query_names: list[str] = []
        modalities: list[str] = []
        for name, source in sources.items():
            for sample in samples[name]:
                pool_samples.append(sample)
                source_names.append(name)
                queries.append(source.queries)
                query_names.append(source.name(sample))
                modalities.append(source.modality)
        return cls(
            samples=pool_samples,
            sources=np.array(source_names),
            queries=np.array(queries),
            query_names=np.array(query_names),
            modalities=np.array(modalities),
            vectors=vectors,
        )


class Question(NamedTuple):
    """A query, its answers and the items that it is searched among."""

    query: QueryVector
    answers: NDArray[np.bool_]
    """(n,)"""
    inside: NDArray[np.bool_]
    """(n,)"""
    sources: frozenset[str]
    """The sources that the query comes from."""


class QueryResult(NamedTuple):
    """Result of one query."""

    answered: bool
    """Whether a right item is among the first hits."""
    chance: float
    """Chance level of `answered`."""
    ndcg: float
    """Normalised discounted cumulative gain of the first hits (`GAINS`)."""
    ndcg_chance: float
    match: float
    """Highest match in the pool."""
    without: float
    """Highest match in the pool without the answers."""


@dataclass(frozen=True, kw_only=True)
class Match(EvaluationProtocol):
    """Figures by source: queries with a right item among the first hits (answered), NDCG, answered queries with a
    likely or possible hit (kept), queries without such a hit once their answers are taken out (turned away), the shares
    of both with the heading "nothing relevant", and the area under the curve."""

    modality: str = ""
    sources: dict[str, QuerySource]
    """Sources by name; together they are the pool that is searched."""
    calibration: str | None = None
    """A calibration file, or a model whose folder has one. None: only texts, which are encoded now."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("sources is empty")
        has_item_queries = any(source.queries == "items" for source in self.sources.values())
        if has_item_queries and self.calibration is None:
            raise UserError("queries that are items need a calibration, a file or a model that has one")

    @property
    def sides(self) -> tuple[Items, ...]:
        return tuple(self.sources.values())

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = {name: source.samples(root) for name, source in self.sources.items()}
        banks = _banks(self.calibration, embedder)
        vectors = []
        for name, source in self.sources.items():
            vectors.append(source.encode(embedder, samples[name]))
        pool = Pool.of(self.sources, samples, np.concatenate(vectors))
        questions = [*_text_questions(pool, embedder), *_item_questions(pool)]
        banks.add(pool.vectors, pool.modalities)
        results = [_result(question, pool, banks) for question in questions]
        figures = self._figures_by_source(questions, results)
        if not figures:
            raise UserError(
                f"fewer than {FEWEST} of {len(questions)} queries have a right item among the first {FIRST} hits"
            )
        return figures

    def _figures_by_source(self, questions: Sequence[Question], results: Sequence[QueryResult]) -> list[Figure]:
        """Figures of all queries and of those of each source, as far as enough of them are answered."""
        results_by_source: dict[str, list[QueryResult]] = {name: [] for name in self.sources}
        for question, result in zip(questions, results, strict=True):
            for name in question.sources:
                results_by_source[name].append(result)
        figures: list[Figure] = []
        for name, source_results in [("all", results), *results_by_source.items()]:
            num_answered = sum(result.answered for result in source_results)
            if num_answered >= FEWEST:
                figures += _figures(name, source_results)
        return figures


def _text_questions(pool: Pool, embedder: Any) -> list[Question]:
    """Queries by names and captions; a name that several sources have is one query."""
    texts: list[str] = []
    answers: list[NDArray[np.bool_]] = []
    origins: list[NDArray[np.bool_]] = []
    is_named = np.isin(pool.queries, ("labels", "names"))
    for name in dict.fromkeys(pool.query_names[is_named].tolist()):
        has_name = pool.query_names == name
        texts.append(name)
        answers.append(has_name)
        origins.append(is_named & has_name)
    for row in np.flatnonzero(pool.queries == "captions"):
        is_captioned = np.arange(len(pool.samples)) == row
        texts.append(pool.samples[row].captions[0])
        answers.append(is_captioned)
        origins.append(is_captioned)
    if not texts:
        return []
    everywhere = np.ones(len(pool.samples), dtype=bool)
    questions = []
    for number, vector in enumerate(encode(embedder, "text", texts)):
        part = EncodedPart(bank_of_text(texts[number]), vector, 1.0)
        question = Question(
            query=QueryVector.of([part]),
            answers=answers[number],
            inside=everywhere,
            sources=frozenset(pool.sources[origins[number]].tolist()),
        )
        questions.append(question)
    return questions


def _item_questions(pool: Pool) -> list[Question]:
    """Queries that are items: each is searched among all other items."""
    questions = []
    for row in np.flatnonzero(pool.queries == "items"):
        inside = np.arange(len(pool.samples)) != row
        answers = inside & (pool.query_names == pool.query_names[row])
        if answers.any():
            part = EncodedPart(str(pool.modalities[row]), pool.vectors[row], 1.0)
            question = Question(
                query=QueryVector.of([part]),
                answers=answers,
                inside=inside,
                sources=frozenset([str(pool.sources[row])]),
            )
            questions.append(question)
    return questions


def _result(question: Question, pool: Pool, banks: Banks) -> QueryResult:
    """Search the pool as an index does: by the match as a word, then by z; among ties, the wrong ones come first."""
    z_scores, matches = _scores(question.query, pool, banks)
    z_scores[~question.inside] = -np.inf
    matches[~question.inside] = 0.0
    order = np.lexsort((question.answers, -z_scores, -level(matches)))
    answer_share = question.answers.mean() / question.inside.mean()
    first_are_right = question.answers[order[: len(GAINS)]]
    largest_dcg = GAINS[: question.answers.sum()].sum()
    return QueryResult(
        answered=bool(question.answers[order[:FIRST]].any()),
        chance=float(1 - (1 - answer_share) ** FIRST),
        ndcg=float(GAINS[: len(first_are_right)][first_are_right].sum() / largest_dcg),
        ndcg_chance=float(answer_share * GAINS.sum() / largest_dcg),
        match=float(matches.max()),
        without=float(np.where(question.answers, 0.0, matches).max()),
    )


def _scores(query: QueryVector, pool: Pool, banks: Banks) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """z-scores (n,) and matches (n,) of all items."""
    scale = Scale(banks, query)
    cosines = pool.vectors @ query.vector
    z_scores = np.zeros(len(pool.samples))
    matches = np.zeros(len(pool.samples))
    for modality in dict.fromkeys(pool.modalities.tolist()):
        rows = pool.modalities == modality
        z_scores[rows], row_matches = scale.score(modality, cosines[rows])
        if row_matches is None:
            raise UserError(f"the calibration has no {query.parts[0].bank} to compare with {modality}")
        matches[rows] = row_matches
    return z_scores, matches


def _figures(name: str, results: Sequence[QueryResult]) -> list[Figure]:
    answered = np.array([result.answered for result in results], dtype=float)
    chance = np.mean([result.chance for result in results])
    ndcg_chance = np.mean([result.ndcg_chance for result in results])
    matches = np.array([result.match for result in results if result.answered])
    without = np.array([result.without for result in results])
    ndcg = [result.ndcg for result in results]
    return [
        Figure.mean_of(f"{name}: answered by the first {FIRST}", answered, float(chance)),
        Figure.mean_of(f"{name}: NDCG@{len(GAINS)}", ndcg, float(ndcg_chance)),
        Figure.mean_of(f"{name}: AUC", _shares_below(without, matches), 0.5),
        _share(f"{name}: kept", matches >= POSSIBLE, 1 - POSSIBLE),
        _share(f"{name}: turned away", without < POSSIBLE, POSSIBLE),
        _share(f"{name}: nothing relevant, of right answers", matches < RELEVANT, RELEVANT),
        _share(f"{name}: nothing relevant, without an answer", without < RELEVANT, RELEVANT),
    ]


def _share(metric: str, holds: NDArray[np.bool_], chance: float) -> Figure:
    return Figure.mean_of(metric, holds.astype(float), chance)


def _shares_below(values: NDArray, thresholds: NDArray) -> NDArray[np.float64]:
    """Share of the values below each threshold, equal ones counted half; its mean is the area under the curve."""
    ordered = np.sort(values)
    below = np.searchsorted(ordered, thresholds, "left")
    not_above = np.searchsorted(ordered, thresholds, "right")
    return (below + not_above) / (2 * len(ordered))


def _banks(calibration: str | None, embedder: Any) -> Banks:
    """The banks of a file, of a model's folder, or of texts that are encoded now."""
    if calibration is None:
        return Banks({bank: encode(embedder, "text", texts_of(bank)) for bank in TEXTS})
    path = Path(os.path.expandvars(calibration)).expanduser()
    if not path.is_file():
        path = resolve(calibration) / CALIBRATION
    if not path.is_file():
        raise UserError("no such file; make it with: onepeace calibrate INDEX", where=path)
    return Banks.load(path.read_bytes())
