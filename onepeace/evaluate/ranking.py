"""Rankings: where the right candidates of each query came, which every recall and top-k accuracy is computed of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.evaluate.metrics import Figure, best_ranks, chance_recall, hits

BLOCK = 1024
"""Queries scored at once: bounds the memory of a large test set."""
GROUP = "group"
"""Target of samples that are not independent, such as frames of one video: the number of their group."""
FILE = "file"
"""Target with the name of a sample's file, by which a report names it instead of by its key."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The ranks of n queries among the same candidates, and what is known of the queries."""

    metric: str
    """Name of its figures, with "{k}": "text to image R@{k}", "top-{k} of 5"."""
    at: tuple[int, ...]
    """The k of its figures."""
    candidates: int
    ranks: list[int]
    """Rank of the best right candidate of each query, from 1; see `best_ranks`."""
    right: list[int]
    """Number of right candidates of each query."""
    groups: list[int]
    """Number of each query's group; queries of one group are not independent."""
    names: list[str]
    """Name of each query: its text, or its file."""
    labels: list[str] = field(default_factory=list)
    """Right class of each query, if the candidates are classes."""
    predicted: list[str] = field(default_factory=list)
    """Class that a head predicts for each query."""
    confidence: list[float] = field(default_factory=list)
    """Probability of the predicted class."""

    @property
    def ks(self) -> list[int]:
        """The least k, and those others at which not all queries are hits anyway, as by top-5 of four classes."""
        return [k for k in self.at if k == min(self.at) or k < self.candidates]

    def metric_at(self, k: int) -> str:
        """Name of the figure for a k."""
        return self.metric.replace("{k}", str(k))

    def figures(self) -> list[Figure]:
        """The share of queries with a right candidate among the first k, for each of `ks`."""
        figures = []
        for k in self.ks:
            chance = chance_recall(self.right, self.candidates, k)
            figures.append(Figure.mean_of(self.metric_at(k), hits(self.ranks, k), chance))
        return figures


def figures_of(results: Iterable[Figure | Ranking]) -> list[Figure]:
    """The figures of the results of a protocol, in their order."""
    figures: list[Figure] = []
    for result in results:
        figures += result.figures() if isinstance(result, Ranking) else [result]
    return figures


def search(queries: NDArray, candidates: NDArray, right: Sequence[Sequence[int]], **facts: Any) -> Ranking:
    """The ranking of candidates (M, E) for queries (N, E) by their products, computed block by block.

    Args:
        right: (N) numbers of the right candidates of each query.
        facts: the other fields of the `Ranking`.
    """
    ranks: list[int] = []
    for start in range(0, len(queries), BLOCK):
        block = slice(start, start + BLOCK)
        scores = queries[block] @ candidates.T
        ranks += best_ranks(scores, correct(right[block], len(candidates))).tolist()
    return Ranking(candidates=len(candidates), ranks=ranks, right=list(map(len, right)), **facts)


def correct(right: Sequence[Sequence[int]], total: int) -> NDArray[np.bool_]:
    """Which of all candidates are right for each query, (N, total), given their numbers."""
    is_right = np.zeros((len(right), total), bool)
    for row, numbers in zip(is_right, right, strict=True):
        row[list(numbers)] = True
    return is_right


def groups_of(samples: Sequence[Sample]) -> list[int]:
    """The group of each sample; without the target `GROUP`, a sample is a group of its own."""
    return [sample.targets.get(GROUP, -number) for number, sample in enumerate(samples, start=1)]


def names_of(samples: Sequence[Sample]) -> list[str]:
    """The file of each sample, or else its key."""
    return [sample.targets.get(FILE, sample.key) for sample in samples]
