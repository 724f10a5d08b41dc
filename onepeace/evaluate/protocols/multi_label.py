"""Zero-shot tagging: items with several labels each against all class names of the set, in sentences."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, average_precisions, chance_average_precision
from onepeace.evaluate.protocols.classes import ClassNames


@dataclass(frozen=True, kw_only=True)
class MultiLabel(ClassNames):
    """Mean average precision of classes that are put into sentences (FSD50K, VOC); see `mean_average_precision`.

    The target "labels" of a sample has its classes (`targets: {labels: [...]}` in its .json).
    """

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = self.read(root)
        for sample in samples:
            if not isinstance(sample.targets.get("labels"), list):
                raise UserError(f"{sample.key} has no list of labels in its targets", where=sample.source)
        labels_by_sample = [set(sample.targets["labels"]) for sample in samples]
        labels = set().union(*labels_by_sample)
        names = self.listed_names(root) or sorted(labels)
        unlisted = labels - set(names)
        if unlisted:
            raise UserError(f"label {min(unlisted)!r} is not among the {len(names)} classes", where=self.shards)
        if not labels:
            raise UserError(f"not one of {len(samples)} samples has a label", where=self.shards)
        scores = self.class_vectors(embedder, names) @ self.encode(embedder, samples).T
        correct = []
        for name in names:
            correct.append([name in sample_labels for sample_labels in labels_by_sample])
        return [mean_average_precision(scores, np.array(correct))]


def mean_average_precision(scores: NDArray, correct: NDArray[np.bool_]) -> Figure:
    """Mean over the classes that have items, each of which is a query for all items; scores and correct are (C, N)."""
    present = correct.any(axis=1)
    precisions = average_precisions(scores[present], correct[present])
    chance = chance_average_precision(correct[present].sum(axis=1), scores.shape[1])
    return Figure.mean_of(f"mAP of {len(precisions)} classes", precisions, chance)
