"""Zero-shot classification: labelled items against all class names of the set, in sentences (embed/zero_shot.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, accuracies
from onepeace.evaluate.protocols.classes import ClassNames
from onepeace.evaluate.protocols.protocol import check_at, ranks_of_classes


@dataclass(frozen=True, kw_only=True)
class ZeroShot(ClassNames):
    """Top-k accuracy; classes are ranked by the similarity of their prototypes to the item."""

    at: tuple[int, ...] = (1, 5)
    """The k of the accuracies."""

    def __post_init__(self) -> None:
        check_at(self.at)
        super().__post_init__()

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = self.read_labelled(root)
        names = self.listed_names(root) or sorted({sample.label for sample in samples})
        numbers = {name: i for i, name in enumerate(names)}
        targets = []
        for sample in samples:
            if sample.label not in numbers:
                raise UserError(f"{sample.key}: label {sample.label!r} is not in {self.classes}", where=sample.source)
            targets.append(numbers[sample.label])
        vectors = self.encode(embedder, samples)
        class_vectors = self.class_vectors(embedder, names)
        ranks = ranks_of_classes(vectors, class_vectors, targets)
        return accuracies(ranks, self.at, len(names))
