"""One list of two modalities: do texts find what they mean among pictures and sounds, and do match probabilities hold?

The pool holds equally many items of both sides (as MixBench does, arXiv 2507.19054). A query means items of one side
only; the other side is in its way. Every ranking of onepeace/index/ranking.py is measured on the mixed list and, with
the same query, on the list of that side alone. For the match probability of the first hit each query is asked twice:
of the pool, and of the pool without what it means, where nothing is the right answer.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.embed.zero_shot import fill
from onepeace.errors import UserError, need
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, check_at, encode
from onepeace.evaluate.ranked import chance_ndcg, chance_recall, ndcg, ordered, recall
from onepeace.evaluate.reliability import Reliability, draw
from onepeace.hub.resolve import resolve
from onepeace.index.calibration import FILE, MODALITIES, Calibration
from onepeace.index.ranking import RANKINGS, PartVector, Pool, QueryVector, match, prior_of, scores, znorm

log = logging.getLogger(__name__)

COIN = 0.5
"""Calibration error, and accuracy, of who calls everything certain or impossible by the toss of a coin."""

ANSWERS = {"with an answer": True, "without an answer": False}
"""How each query is asked; False: what it means is taken out of the pool."""
MEASURES: dict[str, tuple[Callable[..., float], Callable[..., float]]] = {
    "NDCG": (ndcg, chance_ndcg),
    "recall": (recall, chance_recall),
}
"""Each of one query, and what a random order has."""


@dataclass(frozen=True, kw_only=True)
class Side(Items):
    """The items of one modality, and what their queries are."""

    template: str | None = None
    """Sentence with {} or {a} for the label: one query for each label, which means all items of it. None: the first
    caption of each item is a query, which means that item alone."""

    def read_some(self, root: Path, count: int) -> list[Sample]:
        """The first samples, at most that many."""
        return (self.read(root, "text") if self.template is None else self.read_labelled(root))[:count]

    def queries(self, samples: Sequence[Sample]) -> tuple[list[str], NDArray[np.bool_]]:
        """Texts (q), and which of n samples each means, (q, n)."""
        if self.template is None:
            return [sample.captions[0] for sample in samples], np.eye(len(samples), dtype=bool)
        own = np.array([sample.label for sample in samples])
        labels = list(dict.fromkeys(own.tolist()))
        return [fill(self.template, label) for label in labels], own == np.array(labels)[:, None]


class Asked(NamedTuple):
    """A query, and what it means."""

    side: str
    """Modality of what it means."""
    query: QueryVector
    relevant: NDArray[np.bool_]
    """(n,)"""


@dataclass(frozen=True, kw_only=True)
class Mixed(EvaluationProtocol):
    """NDCG and recall of the mixed list and of each side alone, how much of the first hits is of the right side (as is
    all that a query means), and the accuracy and calibration error of the match probability."""

    template: str | None = None
    """As that of the other side."""
    other: Side
    """The second modality."""
    calibration: str
    """A calibration file, or a model whose folder has one; environment variables are expanded."""
    count: int = 400
    """Items of each side in the pool, at most: the first of its shards."""
    at: int = 10
    """How many hits count."""
    rankings: tuple[str, ...] = field(default_factory=lambda: tuple(RANKINGS))
    """Those to measure."""
    plot: str | None = None
    """File for a reliability diagram of the match probability (needs the extra "plot")."""

    def __post_init__(self) -> None:
        check_at([self.at])
        if self.count < 1:
            raise UserError(f"count is {self.count}; it should be at least 1")
        if unknown := [name for name in self.rankings if name not in RANKINGS]:
            raise UserError(f"rankings has {unknown[0]!r}; known: {', '.join(RANKINGS)}")
        if self.modality == self.other.modality:
            raise UserError(f"both sides are {self.modality}; a mixed list has two modalities")
        for side in self.sides:
            if side.modality not in MODALITIES:
                raise UserError(f"modality is {side.modality!r}; known: {', '.join(MODALITIES)}")
            if side.template is not None and "{}" not in side.template and "{a}" not in side.template:
                raise UserError(f"template {side.template!r} has no {{}} for the label")

    @property
    def sides(self) -> tuple[Side, Side]:
        own = Side(modality=self.modality, shards=self.shards, keys=self.keys, template=self.template)
        return own, self.other

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        if self.plot is not None:
            need("matplotlib", "plot")
        calibration = _calibration(self.calibration)
        samples = [side.read_some(root, self.count) for side in self.sides]
        count = min(map(len, samples))
        items, codes, asked = [], [], []
        for number, (side, found) in enumerate(zip(self.sides, samples, strict=True)):
            items.append(side.encode(embedder, found[:count]))
            codes += [MODALITIES.index(side.modality)] * count
            texts, meant = side.queries(found[:count])
            relevant = np.zeros((len(texts), 2 * count), dtype=bool)
            relevant[:, number * count : (number + 1) * count] = meant
            for vector, row in zip(encode(embedder, "text", texts), relevant, strict=True):
                asked.append(Asked(side.modality, QueryVector.of([PartVector("text", vector)]), row))
        vectors = np.concatenate(items)
        if calibration.embed_dim != vectors.shape[1]:
            raise UserError(
                f"{self.calibration}: is a calibration for vectors of {calibration.embed_dim} numbers, "
                f"this model's have {vectors.shape[1]}"
            )
        pool = Pool.of(vectors, np.array(codes), calibration)
        figures = [figure for ranking in self.rankings for figure in self.order(ranking, asked, vectors, pool)]
        if lacking := [side.modality for side in self.sides if ("text", side.modality) not in calibration.platt]:
            log.warning("%s: knows no match probability of text and %s", self.calibration, " and ".join(lacking))
            return figures
        said = {"pairs": pairs(asked, vectors, pool)}
        for ranking in self.rankings:
            said |= first_hits(ranking, asked, vectors, pool)
        if self.plot is not None:
            first = [said[f"first hit {answer} ({self.rankings[0]})"] for answer in ANSWERS]
            hits = first[0].joined(first[1])
            curves = {"pairs, half of them matches": said["pairs"], "first hits, half of them without an answer": hits}
            draw({name: one.reliability for name, one in curves.items()}, Path(self.plot))
        return [*figures, *(figure for name, one in said.items() for figure in one.figures(name))]

    def order(self, ranking: str, asked: Sequence[Asked], items: NDArray, pool: Pool) -> list[Figure]:
        """How good the list of a ranking is for the queries of each side."""
        figures = []
        for side in dict.fromkeys(one.side for one in asked):
            own = pool.codes == MODALITIES.index(side)
            queries = [one for one in asked if one.side == side]
            for where, rows in (("mixed", np.ones_like(own)), ("within", own)):
                inside, some = items[rows], pool.take(rows)
                lists = [(scores(ranking, one.query, inside, some), one.relevant[rows]) for one in queries]
                for name, (measure, chance) in MEASURES.items():
                    values = [measure(found, relevant, self.at) for found, relevant in lists]
                    guessed = [chance(relevant, self.at) for _, relevant in lists]
                    figures.append(_mean(f"{side}: {name}@{self.at} {where} ({ranking})", values, guessed))
            hits = [own[ordered(scores(ranking, one.query, items, pool), one.relevant)[: self.at]] for one in queries]
            name = f"{side}: share of {side} in first {self.at} ({ranking})"
            figures.append(_mean(name, [float(row.mean()) for row in hits], [float(own.mean())]))
        return figures


class Said(NamedTuple):
    """Match probabilities, and what was true."""

    probabilities: NDArray[np.float64]
    """(n,) in 0..1"""
    truths: NDArray[np.bool_]
    """(n,)"""
    weights: NDArray[np.float64]
    """(n,) how much each counts."""
    queries: int

    def joined(self, other: "Said") -> "Said":
        """Both together."""
        return Said(
            np.concatenate([self.probabilities, other.probabilities]),
            np.concatenate([self.truths, other.truths]),
            np.concatenate([self.weights, other.weights]),
            self.queries + other.queries,
        )

    @property
    def reliability(self) -> Reliability:
        return Reliability.of(self.probabilities, self.truths, self.weights)

    def figures(self, name: str) -> list[Figure]:
        """How often a match above 0.5 is one and another is none, and how far the probabilities are off."""
        right = (self.probabilities >= 0.5) == self.truths
        return [
            Figure(
                f"{name}: accuracy of the match", float(np.average(right, weights=self.weights)), COIN, self.queries
            ),
            Figure(f"{name}: calibration error of the match", self.reliability.error, COIN, self.queries),
        ]


def pairs(asked: Sequence[Asked], items: NDArray, pool: Pool) -> Said:
    """All pairs of a query and an item, at even odds: of each query, what it means weighs as much as all the rest."""
    found, truths, weights = [], [], []
    for one, weight in zip(asked, _weights(asked), strict=True):
        found.append(match(one.query, scores("znorm", one.query, items, pool), pool, prior=0.5))
        truths.append(one.relevant)
        weights.append(weight * np.where(one.relevant, 1 / one.relevant.sum(), 1 / (~one.relevant).sum()))
    return Said(np.concatenate(found), np.concatenate(truths), np.concatenate(weights), len(asked))


def first_hits(ranking: str, asked: Sequence[Asked], items: NDArray, pool: Pool) -> dict[str, Said]:
    """The first hit of each query, in the pool and in the pool without what it means.

    The prior is that of a search over as many items.
    """
    answers = {}
    for name, there in ANSWERS.items():
        found, truths = [], []
        for one in asked:
            rows = np.ones_like(one.relevant) if there else ~one.relevant
            inside, some, relevant = items[rows], pool.take(rows), one.relevant[rows]
            first = ordered(scores(ranking, one.query, inside, some), relevant)[:1]
            z = znorm(one.query, inside[first] @ one.query.vector, some.take(first))
            found.append(match(one.query, z, some.take(first), prior=prior_of(len(inside))))
            truths.append(relevant[first])
        answers[f"first hit {name} ({ranking})"] = Said(
            np.concatenate(found), np.concatenate(truths), _weights(asked), len(asked)
        )
    return answers


def _weights(asked: Sequence[Asked]) -> NDArray[np.float64]:
    """(q,) so that the queries of one side weigh as much as those of the other."""
    counts = Counter(one.side for one in asked)
    return np.array([1 / counts[one.side] for one in asked])


def _mean(name: str, values: Sequence[float], guessed: Sequence[float]) -> Figure:
    return Figure(name, float(np.mean(values)), float(np.mean(guessed)), len(values))


def _calibration(text: str) -> Calibration:
    path = Path(os.path.expandvars(text)).expanduser()
    return Calibration.load(path if path.is_file() else resolve(text) / FILE)
