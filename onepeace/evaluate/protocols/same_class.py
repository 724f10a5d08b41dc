"""Search between two modalities without paired items: items of the same class are right.

The classes of the two sides have different names; the recipe gives the matches ("dog": all breeds of dogs). Queries are
only the items of these classes, candidates are all items of the other side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, chance_precision, precisions_at
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, Labelled, check_at


@dataclass(frozen=True, kw_only=True)
class SameClass(EvaluationProtocol):
    """Precision at k in both directions: the mean share of right items among the first k."""

    other: Items
    """The second modality and its shards."""
    matches: dict[str, tuple[str, ...]]
    """Label -> labels of the other side with the same meaning."""
    at: tuple[int, ...] = (10,)
    """The k of the precisions."""

    def __post_init__(self) -> None:
        check_at(self.at)
        if not self.matches or not all(self.matches.values()):
            raise UserError("matches is empty or has an empty list; give {label: [labels of the other side]}")

    @property
    def sides(self) -> tuple[Items, ...]:
        return self, self.other

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        back: dict[str, list[str]] = {}
        for label, partners in self.matches.items():
            for partner in partners:
                back.setdefault(partner, []).append(label)
        first, second = (side.encode_labelled(embedder, root) for side in self.sides)
        for side, found, wanted in ((self, first, self.matches), (self.other, second, back)):
            if strange := [label for label in wanted if label not in found.labels]:
                raise UserError(f"matches names {strange[0]!r}, which is no label in {side.shards}")
        return [
            *precisions(f"{self.modality} to {self.other.modality}", first, second, self.matches, self.at),
            *precisions(f"{self.other.modality} to {self.modality}", second, first, back, self.at),
        ]


def precisions(
    name: str, queries: Labelled, candidates: Labelled, matches: Mapping[str, Sequence[str]], at: Sequence[int]
) -> list[Figure]:
    """The precision in one direction for each k of ``at``.

    Args:
        matches: class of the queries -> classes of the candidates that are right; each has at least one item.
    """
    chances, values = [], []
    for label, partners in matches.items():  # class by class: few scores at a time, and one set of right candidates
        scores = queries.vectors[queries.labels == label] @ candidates.vectors.T
        right, wanted = np.isin(candidates.labels, partners), np.ones(len(scores), dtype=bool)
        chances.append(np.full(len(scores), chance_precision(wanted, right)))
        values.append([precisions_at(scores, wanted, right, k) for k in at])
    chance = float(np.concatenate(chances).mean())
    each = np.concatenate(values, axis=1)  # (number of k, queries)
    return [Figure.mean_of(f"{name} precision@{k}", row, chance) for k, row in zip(at, each, strict=True)]
