"""The metrics of each task (embed/tasks.py): figures of a head's outputs, given the targets of the samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.datasets.vqa_answers import normalize_answer
from onepeace.errors import UserError
from onepeace.evaluate import detections
from onepeace.evaluate.metrics import Figure, accuracies, box_iou
from onepeace.evaluate.protocols.multi_label import mean_average_precision
from onepeace.processors import ImageProcessor

Results = Sequence[Mapping[str, Any]]
"""Output of the head for each sample."""
Targets = Sequence[Any]
"""The same target of each sample."""
Labels = Sequence[str]
"""Class names of the head."""
Samples = Sequence[Sample]


def _accuracy(results: Results, targets: Targets, labels: Labels, _: Samples) -> list[Figure]:
    for target in targets:
        if labels and target not in labels:
            raise UserError(f"label {target!r} is not among the {len(labels)} labels of the head")
    ranks = []
    for result, target in zip(results, targets, strict=True):
        ranked_labels = [entry["label"] for entry in result["labels"]]
        ranks.append(ranked_labels.index(target) + 1)
    at = [1]
    if len(labels) > 5:
        at.append(5)
    return accuracies(ranks, at, len(labels))


def _tags(results: Results, targets: Targets, labels: Labels, _: Samples) -> list[Figure]:
    rows = {label: row for row, label in enumerate(labels)}
    scores = np.zeros((len(labels), len(results)))
    for column, result in enumerate(results):
        for entry in result["labels"]:
            scores[rows[entry["label"]], column] = entry["score"]
    correct = np.array([[label in target for target in targets] for label in labels])
    if not correct.any():
        raise UserError(f"not one of {len(targets)} samples has one of the {len(labels)} labels of the head")
    return [mean_average_precision(scores, correct)]


def _answers(results: Results, targets: Targets, labels: Labels, samples: Samples) -> list[Figure]:
    """VQA accuracy: the score of the answer in the target (released code), or with the answers of ten annotators the
    official one."""
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


def _boxes(results: Results, targets: Targets, _: Labels, samples: Samples) -> list[Figure]:
    sizes = _sizes_in_pixels(samples)
    boxes = [_relative(result["box"], size) for result, size in zip(results, sizes, strict=True)]
    references = np.array(targets, dtype=np.float64)
    overlaps = box_iou(np.array(boxes), references)
    # The chance level is a box around the whole picture.
    whole_pictures = np.tile([0.0, 0.0, 1.0, 1.0], (len(targets), 1))
    chance_overlaps = box_iou(whole_pictures, references)
    right = (overlaps >= 0.5).astype(float)
    return [
        Figure.mean_of("accuracy at IoU 0.5", right, float((chance_overlaps >= 0.5).mean())),
        Figure.mean_of("mean IoU", overlaps, float(chance_overlaps.mean())),
    ]


def _detections(results: Results, targets: Targets, _: Labels, samples: Samples) -> list[Figure]:
    predicted_boxes = []
    for result, size in zip(results, _sizes_in_pixels(samples), strict=True):
        boxes = [(tuple(_relative(box["box"], size)), box["label"], box["score"]) for box in result["boxes"]]
        predicted_boxes.append(boxes)
    target_boxes = []
    for corners_of_boxes, sample in zip(targets, samples, strict=True):
        box_labels = sample.targets["box_labels"]
        objects = [(tuple(corners), label) for corners, label in zip(corners_of_boxes, box_labels, strict=True)]
        target_boxes.append(objects)
    average, average_at_half = detections.box_ap(predicted_boxes, target_boxes)
    return [
        Figure("box AP", average, 0.0, len(results)),
        Figure("box AP50", average_at_half, 0.0, len(results)),
    ]


def _sizes_in_pixels(samples: Samples) -> list[tuple[int, int]]:
    """Width and height of each sample's picture."""
    processor = ImageProcessor()
    return [processor.size_in_pixels(sample.inputs["image"]) for sample in samples]


def _relative(box: Sequence[float], size: tuple[int, int]) -> NDArray[np.float64]:
    """Corners (4,) in pixels, relative to the picture's (width, height)."""
    width, height = size
    return np.array(box) / [width, height, width, height]


def _choices(results: Results, targets: Targets, _: Labels, __: Samples) -> list[Figure]:
    right = [float(result["number"] == target) for result, target in zip(results, targets, strict=True)]
    guessed = [1 / len(result["scores"]) for result in results]
    return [Figure.mean_of("accuracy", right, float(np.mean(guessed)))]


def _events(results: Results, targets: Targets, _: Labels, __: Samples) -> list[Figure]:
    predicted_events = []
    for result in results:
        events = [(event["onset"], event["offset"], event["label"]) for event in result["events"]]
        predicted_events.append(events)
    target_events = [[tuple(event) for event in target] for target in targets]
    f1 = detections.event_f1(predicted_events, target_events)
    return [Figure("event F1", f1, 0.0, len(results))]


def _masks(results: Results, targets: Targets, labels: Labels, samples: Samples) -> list[Figure]:
    # A generator: the masks of a whole set may not fit into memory.
    masks = (
        (result["mask"], detections.read_mask(target, sample.key))
        for result, target, sample in zip(results, targets, samples, strict=True)
    )
    mean_iou, pixel_accuracy = detections.mean_iou(masks, len(labels))
    # Chance levels of uniform guesses if all classes have equally many pixels.
    return [
        Figure("mIoU", mean_iou, 1 / (2 * len(labels) - 1), len(results)),
        Figure("pixel accuracy", pixel_accuracy, 1 / len(labels), len(results)),
    ]


@dataclass(frozen=True)
class Metric:
    """Metric of the results of a task."""

    target: str
    """Name of the target that each sample must have."""
    figures: Callable[[Results, Targets, Labels, Samples], list[Figure]]
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
