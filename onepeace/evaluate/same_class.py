"""Search between two modalities whose items were never paired: what is of the same class is right. Next: benchmarks.py.

The classes of the two sides have different names; which belong together is given ("dog": all breeds of dogs). Queries
are the items of those classes only, candidates are all items of the other side.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.evaluate.metrics import Figure, chance_precision, precision_at
from onepeace.evaluate.retrieval import encode

Side = tuple[NDArray, NDArray]
"""Vectors (n, E) and the labels (n,) of their items."""


class Labelled(NamedTuple):
    """Items of one modality, each with the name of its class."""

    modality: str
    items: Sequence[Any]
    labels: Sequence[str]


def same_class(
    embedder: Any,
    first: Labelled,
    second: Labelled,
    matches: Mapping[str, Sequence[str]],
    *,
    at: Sequence[int] = (10,),
) -> list[Figure]:
    """Mean share of right items among the first k, for each k of `at` and in both directions.

    matches: class of the first side -> classes of the second side that are the same thing. A class may have several
    partners, in both directions; each has at least one item.
    """
    back: dict[str, list[str]] = {}
    for label, partners in matches.items():
        for partner in partners:
            back.setdefault(partner, []).append(label)
    one, other = [(encode(embedder, side.modality, side.items), np.array(side.labels)) for side in (first, second)]
    return [
        *_one_way(f"{first.modality} to {second.modality}", one, other, matches, at),
        *_one_way(f"{second.modality} to {first.modality}", other, one, back, at),
    ]


def _one_way(
    name: str, queries: Side, candidates: Side, matches: Mapping[str, Sequence[str]], at: Sequence[int]
) -> list[Figure]:
    query_vectors, query_labels = queries
    vectors, labels = candidates
    counts, chances, values = [], [], []
    for label, partners in matches.items():  # class by class: few scores at a time, and one set of right candidates
        scores = query_vectors[query_labels == label] @ vectors.T
        right, wanted = np.isin(labels, partners), np.ones(len(scores), dtype=bool)
        counts.append(len(scores))
        chances.append(chance_precision(wanted, right))
        values.append([precision_at(scores, wanted, right, k) for k in at])
    chance = float(np.average(chances, weights=counts))
    means = np.average(values, axis=0, weights=counts)
    return [
        Figure(f"{name} precision@{k}", float(value), chance, sum(counts)) for k, value in zip(at, means, strict=True)
    ]
