"""Search between two modalities without paired items: items of the same class are right.

The classes of the two sides have different names; the recipe gives the matches ("dog": all breeds of dogs). Queries are
only the items of these classes, candidates are all items of the other side.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.config.reader import Count
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, precisions_at
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, Labelled


@dataclass(frozen=True, kw_only=True)
class SameClass(EvaluationProtocol):
    """Precision at k in both directions: the mean share of right items among the first k."""

    other: Items
    """The second modality and its shards."""
    matches: dict[str, tuple[str, ...]]
    """Label -> labels of the other side with the same meaning."""
    at: tuple[Count, ...] = (10,)
    """The k of the precisions."""

    def __post_init__(self) -> None:
        if not self.matches or not all(self.matches.values()):
            raise UserError("matches is empty or has an empty list; give {label: [labels of the other side]}")

    @property
    def sides(self) -> tuple[Items, ...]:
        return (self, self.other)

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        matches_of_other: dict[str, list[str]] = {}
        for label, partners in self.matches.items():
            for partner in partners:
                matches_of_other.setdefault(partner, []).append(label)
        first = self.encode_labelled(embedder, root)
        second = self.other.encode_labelled(embedder, root)
        _check_labels(self.matches, first, self.shards)
        _check_labels(matches_of_other, second, self.other.shards)
        return [
            *precisions(f"{self.modality} to {self.other.modality}", first, second, self.matches, self.at),
            *precisions(f"{self.other.modality} to {self.modality}", second, first, matches_of_other, self.at),
        ]


def _check_labels(matches: Iterable[str], items: Labelled, shards: str) -> None:
    for label in matches:
        if label not in items.labels:
            raise UserError(f"matches names {label!r}, which is not a label in {shards}")


def precisions(
    name: str,
    queries: Labelled,
    candidates: Labelled,
    matches: Mapping[str, Sequence[str]],
    at: Sequence[int],
) -> list[Figure]:
    """The precision in one direction for each k of ``at``.

    Args:
        matches: class of the queries -> classes of the candidates that are right; each has at least one item.
    """
    chances: list[NDArray[np.float64]] = []
    values_by_k: dict[int, list[NDArray[np.float64]]] = {k: [] for k in at}
    for label, partners in matches.items():  # class by class: few scores at a time, and one set of right candidates
        scores = queries.vectors[queries.labels == label] @ candidates.vectors.T
        is_right = np.isin(candidates.labels, partners)
        chances.append(np.full(len(scores), is_right.mean()))
        for k, values in values_by_k.items():
            values.append(precisions_at(scores, np.broadcast_to(is_right, scores.shape), k))
    chance = float(np.concatenate(chances).mean())
    figures = []
    for k in at:
        precision = np.concatenate(values_by_k[k])
        figures.append(Figure.mean_of(f"{name} precision@{k}", precision, chance))
    return figures
