"""Sets whose items belong to named classes, which are put into sentences: one class for each item, or several."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.config.reader import Count
from onepeace.embed.classify import TEMPLATES, prototypes
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, average_precisions, chance_average_precision
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, encode
from onepeace.evaluate.ranking import Ranking, groups_of, names_of, search


@dataclass(frozen=True, kw_only=True)
class ClassNames(EvaluationProtocol):
    """The options of a protocol that puts class names into sentences."""

    classes: tuple[str, ...] | str | None = None
    """The class names; or a file below the root: a JSON list of them, or of objects with a "name". Default: the shards'
    labels."""
    templates: tuple[str, ...] = ()
    """Sentences with {} for the name or {a} for the name with its article; by default the modality's TEMPLATES."""

    def __post_init__(self) -> None:
        if not self.templates and self.modality not in TEMPLATES:
            raise UserError(f"no default templates for {self.modality}; give templates (known: {', '.join(TEMPLATES)})")
        for template in self.templates:
            if "{}" not in template and "{a}" not in template:
                raise UserError(f"template {template!r} has no {{}} for the class name")

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.templates or TEMPLATES[self.modality]

    def listed_names(self, root: Path) -> list[str] | None:
        """The names of the classes, in the order of their numbers; None if none are given."""
        if isinstance(self.classes, str):
            return read_class_names(root / self.classes)
        return list(self.classes) if self.classes else None

    def class_vectors(self, embedder: Any, names: Sequence[str]) -> NDArray:
        """The prototypes of the classes, (C, E)."""

        def encode_texts(texts: Sequence[str]) -> NDArray:
            return encode(embedder, "text", texts)

        return prototypes(encode_texts, names, self.prompts).numpy()


def read_class_names(path: Path) -> list[str]:
    """Read a JSON list of names, or of objects with a "name"; UserError if the names are not distinct texts."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = []
        for entry in entries:
            names.append(entry["name"] if isinstance(entry, dict) else entry)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'not a JSON list of class names, or of objects with a "name" ({error})', where=path) from error
    if not names:
        raise UserError("class names must be distinct texts; found 'none'", where=path)
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            raise UserError(f"class names must be distinct texts; found {name!r}", where=path)
    return names


@dataclass(frozen=True, kw_only=True)
class ZeroShot(ClassNames):
    """Top-k accuracy; classes are ranked by the similarity of their prototypes to the item."""

    at: tuple[Count, ...] = (1, 5)
    """The k of the accuracies."""

    def run(self, embedder: Any, root: Path) -> list[Ranking]:
        samples = self.read_labelled(root)
        labels = [sample.label for sample in samples]
        names = self.listed_names(root) or sorted(set(labels))
        numbers = {name: i for i, name in enumerate(names)}
        for sample in samples:
            if sample.label not in numbers:
                where = self.classes if isinstance(self.classes, str) else "classes"
                raise UserError(f"{sample.key}: label {sample.label!r} is not in {where}", where=sample.source)
        ranking = search(
            self.encode(embedder, samples),
            self.class_vectors(embedder, names),
            [[numbers[label]] for label in labels],
            metric=f"top-{{k}} of {len(names)}",
            at=self.at,
            groups=groups_of(samples),
            names=names_of(samples),
            labels=labels,
        )
        return [ranking]


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
