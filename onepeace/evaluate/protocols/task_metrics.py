"""The metrics of each task (embed/predict.py): figures of a head's outputs, given the targets of the samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure, best_ranks, box_iou
from onepeace.evaluate.protocols.classes import mean_average_precision
from onepeace.evaluate.protocols.vqa_answers import normalize_answer
from onepeace.evaluate.ranking import Ranking, correct, groups_of, names_of
from onepeace.processors import ImageProcessor

Results = Sequence[Mapping[str, Any]]
"""Output of the head for each sample."""


class Predictions(NamedTuple):
    """Predictions of a head for n samples, and the targets that they are compared with."""

    results: Results
    """(n)"""
    targets: Sequence[Any]
    """(n) targets of the name that the metric needs."""
    labels: Sequence[str]
    """Class names of the head; empty if it has none."""
    samples: Sequence[Sample]
    """(n)"""


def _accuracy(predictions: Predictions) -> list[Ranking]:
    results, targets, labels, samples = predictions
    for target in targets:
        if target not in labels:
            raise UserError(f"label {target!r} is not among the {len(labels)} labels of the head")
    right = [[labels.index(target)] for target in targets]
    best = [result["labels"][0] for result in results]
    ranking = Ranking(
        metric=f"top-{{k}} of {len(labels)}",
        at=(1, 5),
        candidates=len(labels),
        ranks=best_ranks(_scores(predictions), correct(right, len(labels))).tolist(),
        right=[1] * len(targets),
        groups=groups_of(samples),
        names=names_of(samples),
        labels=list(targets),
        predicted=[entry["label"] for entry in best],
        confidence=[entry["score"] for entry in best],
    )
    return [ranking]


def _scores(predictions: Predictions) -> NDArray[np.float64]:
    """The scores of all classes for each sample, (N, C)."""
    columns = {label: column for column, label in enumerate(predictions.labels)}
    scores = np.zeros((len(predictions.results), len(columns)))
    for row, result in zip(scores, predictions.results, strict=True):
        for entry in result["labels"]:
            row[columns[entry["label"]]] = entry["score"]
    return scores


def _tags(predictions: Predictions) -> list[Figure]:
    is_right = []
    for target in predictions.targets:
        is_right.append([label in target for label in predictions.labels])
    if not np.any(is_right):
        num_samples, num_labels = len(predictions.targets), len(predictions.labels)
        raise UserError(f"not one of {num_samples} samples has one of the {num_labels} labels of the head")
    return [mean_average_precision(_scores(predictions).T, np.array(is_right).T)]


def _answers(predictions: Predictions) -> list[Figure]:
    """VQA accuracy: the score of the answer in the target (released code), or with the answers of ten annotators the
    official one."""
    results, targets, labels, samples = predictions
    scores = []
    for result, target, sample in zip(results, targets, samples, strict=True):
        annotations = sample.targets.get("annotations")
        if annotations:
            scores.append(_official_vqa_score(result["answer"], annotations))
        else:
            scores.append(float(target.get(result["answer"], 0.0)))
    return [Figure.mean_of("VQA accuracy", scores, 1 / max(len(labels), 1))]


def _official_vqa_score(answer: str, annotations: Sequence[str]) -> float:
    """The mean, each annotator left out once, of min(1, how many of the other nine gave the answer / 3)."""
    agrees = [normalize_answer(annotation) == answer for annotation in annotations]
    num_agreeing = sum(agrees)
    scores = [min(1.0, (num_agreeing - left_out) / 3) for left_out in agrees]
    return float(np.mean(scores))


def _boxes(predictions: Predictions) -> list[Figure]:
    boxes = []
    sizes = sizes_in_pixels(predictions.samples)
    for result, size in zip(predictions.results, sizes, strict=True):
        boxes.append(relative(result["box"], size))
    references = np.array(predictions.targets, dtype=np.float64)
    overlaps = box_iou(np.array(boxes), references)
    # The chance level is a box around the whole picture.
    whole_picture = np.array([0.0, 0.0, 1.0, 1.0])
    chance_overlaps = box_iou(np.tile(whole_picture, (len(references), 1)), references)
    right = (overlaps >= 0.5).astype(float)
    return [
        Figure.mean_of("accuracy at IoU 0.5", right, float((chance_overlaps >= 0.5).mean())),
        Figure.mean_of("mean IoU", overlaps, float(chance_overlaps.mean())),
    ]


def sizes_in_pixels(samples: Sequence[Sample]) -> list[tuple[int, int]]:
    """Width and height of each sample's picture."""
    processor = ImageProcessor()
    return [processor.size_in_pixels(sample.inputs["image"]) for sample in samples]


def relative(box: Sequence[float], size: tuple[int, int]) -> NDArray[np.float64]:
    """Corners (4,) in pixels, relative to the picture's (width, height)."""
    width, height = size
    return np.array(box) / [width, height, width, height]


def _choices(predictions: Predictions) -> list[Figure]:
    right = []
    chances = []
    for result, target in zip(predictions.results, predictions.targets, strict=True):
        right.append(float(result["number"] == target))
        chances.append(1 / len(result["scores"]))
    return [Figure.mean_of("accuracy", right, float(np.mean(chances)))]


@dataclass(frozen=True)
class Metric:
    """Metric of the results of a task."""

    target: str
    """Name of the target that each sample must have."""
    figures: Callable[[Predictions], Sequence[Ranking | Figure]]
    named: bool = True
    """Whether the results contain class names, which requires labels in the head."""


METRICS = {
    "label": Metric("label", _accuracy),
    "labels": Metric("labels", _tags),
    "answer": Metric("answers", _answers),
    "box": Metric("box", _boxes, named=False),
    "choice": Metric("choice", _choices, named=False),
}
