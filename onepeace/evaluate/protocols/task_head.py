"""Evaluation of a task head on samples with targets; the metric depends on the task (embed/tasks.py)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.data.sample import Sample
from onepeace.datasets.vqa_answers import normalize_answer
from onepeace.errors import UserError
from onepeace.evaluate import detections
from onepeace.evaluate.metrics import Figure, accuracies, box_iou
from onepeace.evaluate.protocols.multi_label import mean_average_precision
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, results_of
from onepeace.processors import ImageProcessor

Results = Sequence[Mapping[str, Any]]
"""Output of the head for each sample."""


@dataclass(frozen=True, kw_only=True)
class TaskHead(EvaluationProtocol):
    """Metrics of a model's own head: accuracy, mAP, VQA accuracy, IoU of a box, AP of boxes, event F1 or mean IoU."""

    head: str | None = None
    """Name of one of the model's heads; None if it has only one."""
    others: tuple[str, ...] = ()
    """Modalities that are read together with this one, e.g. [text]."""
    group: str | None = None
    """A target that groups samples, to measure also the share of groups whose samples are all right (NLVR2)."""

    @property
    def sides(self) -> tuple[Items, ...]:
        return (self, *(self.of(modality) for modality in self.others))

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        from onepeace.embed.predict import Predictor

        head = Predictor(embedder, self.head)
        task = METRICS[head.task]
        target, labels = task.target, head.config.get("labels", ())
        if task.named and not labels:
            raise UserError(f"the head {head.name} has no labels, so its output cannot be compared with {target}")
        samples = self.read(root, *self.others)
        for sample in samples:
            if target not in sample.targets:
                raise UserError(f"{sample.source}: {sample.key} has no {target} among its targets")

        def predict(items: Sequence[Any]) -> list[Any]:
            return list(head.predict(items, top=len(labels) or 1))

        results = []
        predictions = results_of(predict, [self._item(sample) for sample in samples])
        for sample, prediction in zip(samples, predictions, strict=True):
            if prediction.result is None:
                raise UserError(f"{sample.source}: {sample.key}: {prediction.reason}")
            results.append(prediction.result)
        figures = task.figures(results, [sample.targets[target] for sample in samples], labels, samples)
        if self.group is not None and figures[0].per_query:
            figures.append(_consistency(figures[0].per_query, [s.targets.get(self.group) for s in samples]))
        return figures

    def _item(self, sample: Sample) -> dict[str, Any]:
        keys = (self.modality, *self.others)
        item = {key: sample.captions[0] if key == "text" else sample.inputs[key] for key in keys}
        return item | ({"candidates": sample.targets["candidates"]} if "candidates" in sample.targets else {})


def _consistency(right: Sequence[float], groups: Sequence[Any]) -> Figure:
    """The share of groups whose samples are all right."""
    whole: dict[Any, bool] = {}
    for value, group in zip(right, groups, strict=True):
        whole[group] = whole.get(group, True) and value == 1
    # A guess is right with probability 1/2 for each sample of a group.
    chance = float(np.mean([0.5**size for size in Counter(groups).values()]))
    return Figure.mean_of("consistency", [float(all_right) for all_right in whole.values()], chance)


def _accuracy(results: Results, targets: Sequence[Any], labels: Sequence[str], _: Any) -> list[Figure]:
    for target in targets:
        if labels and target not in labels:
            raise UserError(f"label {target!r} is not among the {len(labels)} labels of the head")
    names = [[one["label"] for one in result["labels"]] for result in results]
    ranks = [found.index(target) + 1 for found, target in zip(names, targets, strict=True)]
    return accuracies(ranks, [k for k in (1, 5) if k == 1 or k < len(labels)], len(labels))


def _tags(results: Results, targets: Sequence[Any], labels: Sequence[str], _: Any) -> list[Figure]:
    number = {label: i for i, label in enumerate(labels)}
    scores = np.zeros((len(labels), len(results)))
    for column, result in enumerate(results):
        for one in result["labels"]:
            scores[number[one["label"]], column] = one["score"]
    correct = np.array([[label in target for target in targets] for label in labels])
    if not correct.any():
        raise UserError(f"not one of {len(targets)} samples has one of the {len(labels)} labels of the head")
    return [mean_average_precision(scores, correct)]


def _answers(
    results: Results, targets: Sequence[Any], labels: Sequence[str], samples: Sequence[Sample]
) -> list[Figure]:
    """VQA accuracy: the score of the answer in the target (released code); with the answers of ten annotators, the
    official one: the mean, each left out once, of min(1, how many of the other nine gave the answer / 3)."""
    scores = []
    for result, target, sample in zip(results, targets, samples, strict=True):
        said = sample.targets.get("annotations")
        if said:
            right = [normalize_answer(other) == result["answer"] for other in said]
            rest = [sum(right) - own for own in right]
            scores.append(float(np.mean([min(1.0, count / 3) for count in rest])))
        else:
            scores.append(float(target.get(result["answer"], 0.0)))
    return [Figure.mean_of("VQA accuracy", scores, 1 / max(len(labels), 1))]


def _boxes(results: Results, targets: Sequence[Any], _: Any, samples: Sequence[Sample]) -> list[Figure]:
    size_of = ImageProcessor().size_in_pixels
    sizes = [size_of(sample.inputs["image"]) for sample in samples]
    found = [np.array(result["box"]) / [w, h, w, h] for result, (w, h) in zip(results, sizes, strict=True)]
    overlaps = box_iou(np.array(found), np.array(targets, dtype=np.float64))
    # The chance level is a box around the whole picture.
    whole = box_iou(np.tile([0.0, 0.0, 1.0, 1.0], (len(targets), 1)), np.array(targets, dtype=np.float64))
    return [
        Figure.mean_of("accuracy at IoU 0.5", (overlaps >= 0.5).astype(float), float((whole >= 0.5).mean())),
        Figure.mean_of("mean IoU", overlaps, float(whole.mean())),
    ]


def _detections(
    results: Results, targets: Sequence[Any], labels: Sequence[str], samples: Sequence[Sample]
) -> list[Figure]:
    size_of = ImageProcessor().size_in_pixels
    found, real = [], []
    for result, target, sample in zip(results, targets, samples, strict=True):
        width, height = size_of(sample.inputs["image"])
        found.append(
            [(tuple(np.array(one["box"]) / [width, height, width, height]), one["label"], one["score"])
             for one in result["boxes"]]
        )  # fmt: skip
        real.append([(tuple(box), label) for box, label in zip(target, sample.targets["box_labels"], strict=True)])
    every, half = detections.box_ap(found, real)
    return [Figure("box AP", every, 0.0, len(results)), Figure("box AP50", half, 0.0, len(results))]


def _choices(results: Results, targets: Sequence[Any], _: Any, __: Any) -> list[Figure]:
    right = [float(result["number"] == target) for result, target in zip(results, targets, strict=True)]
    return [Figure.mean_of("accuracy", right, float(np.mean([1 / len(result["scores"]) for result in results])))]


def _events(results: Results, targets: Sequence[Any], labels: Sequence[str], _: Any) -> list[Figure]:
    found = [[(e["onset"], e["offset"], e["label"]) for e in result["events"]] for result in results]
    value = detections.event_f1(found, [[tuple(event) for event in target] for target in targets])
    return [Figure("event F1", value, 0.0, len(results))]


def _masks(results: Results, targets: Sequence[Any], labels: Sequence[str], samples: Sequence[Sample]) -> list[Figure]:
    masks = ((result["mask"], detections.read_mask(target, sample.key))
             for result, target, sample in zip(results, targets, samples, strict=True))  # fmt: skip
    overlap, accuracy = detections.mean_iou(masks, len(labels))
    # Chance levels of uniform guesses if all classes have equally many pixels.
    return [Figure("mIoU", overlap, 1 / (2 * len(labels) - 1), len(results)),
            Figure("pixel accuracy", accuracy, 1 / len(labels), len(results))]  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """Metric of the results of a task."""

    target: str
    figures: Callable[[Results, Sequence[Any], Sequence[str], Sequence[Sample]], list[Figure]]
    named: bool = True
    """Whether the results contain class names, which requires labels in the head."""


METRICS = {
    "label": Metric("label", _accuracy),
    "labels": Metric("labels", _tags),
    "answer": Metric("answers", _answers),
    "box": Metric("box", _boxes, named=False),
    "boxes": Metric("boxes", _detections),
    "choice": Metric("choice", _choices, named=False),
    "events": Metric("events", _events),
    "mask": Metric("mask", _masks),
}
