"""Metrics of localisation: events in time, objects in boxes, classes of pixels."""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, need
from onepeace.files.source import read_bytes

IGNORED = 255
"""Value of a mask for pixels that are not evaluated."""
COLLAR = 0.2
"""Tolerance of onset and offset in seconds (DESED; sed_eval)."""
SHARE = 0.2
"""Tolerance of the offset as a share of the event's length, if that is more than `COLLAR`."""

Event = tuple[float, float, str]
"""Onset and offset in seconds, class name."""


def event_f1(predicted: Sequence[Sequence[Event]], targets: Sequence[Sequence[Event]]) -> float:
    """Event-based F1, the mean over the classes of the targets (Mesaros, Heittola, Virtanen, 2016; as in DESED).

    A predicted event is right if a target of its class begins within `COLLAR` of it and ends within the larger of
    `COLLAR` and `SHARE` of the target's length. Each event is matched at most once, by a maximum matching.

    Args:
        predicted, targets: the events of each sound.

    Raises:
        UserError: the targets have no event.
    """
    classes: set[str] = set()
    for events in targets:
        for _, _, label in events:
            classes.add(label)
    if not classes:
        raise UserError(f"not one of {len(targets)} sounds has an event")
    f1_by_class = [_class_f1(label, predicted, targets) for label in sorted(classes)]
    return float(np.mean(f1_by_class))


def _class_f1(label: str, predicted: Sequence[Sequence[Event]], targets: Sequence[Sequence[Event]]) -> float:
    num_right = 0
    num_events = 0
    for predicted_in_sound, targets_in_sound in zip(predicted, targets, strict=True):
        predicted_events = [event for event in predicted_in_sound if event[2] == label]
        target_events = [event for event in targets_in_sound if event[2] == label]
        num_right += _num_matched(predicted_events, target_events)
        num_events += len(predicted_events) + len(target_events)
    return 2 * num_right / num_events


def _num_matched(predicted: Sequence[Event], targets: Sequence[Event]) -> int:
    """Number of pairs in a maximum matching of the events that fit each other."""
    sparse = need("scipy.sparse", "eval")
    csgraph = need("scipy.sparse.csgraph", "eval")
    fits_of_events = []
    for event in predicted:
        fits_of_events.append([_fits(event, target) for target in targets])
    fits = np.array(fits_of_events, dtype=np.int8)
    if not fits.any():
        return 0
    matches = csgraph.maximum_bipartite_matching(sparse.csr_array(fits), perm_type="column")
    return int((matches >= 0).sum())


def _fits(predicted: Event, target: Event) -> bool:
    onset, offset, _ = target
    offset_tolerance = max(COLLAR, SHARE * (offset - onset))
    return abs(predicted[0] - onset) <= COLLAR and abs(predicted[1] - offset) <= offset_tolerance


Corners = tuple[float, ...]
"""x0, y0, x1, y1."""


def box_ap(
    predicted: Sequence[Sequence[tuple[Corners, str, float]]],
    targets: Sequence[Sequence[tuple[Corners, str]]],
) -> tuple[float, float]:
    """Average precision of boxes as in COCO, the mean over the classes of the targets: over IoUs of 0.5 to 0.95,
    and at 0.5. Computed by pycocotools, without crowd regions.

    Args:
        predicted: for each picture, corners, class and score of each predicted box; the best hundred of a class count.
        targets: for each picture, corners and class of each object, in the same units.

    Raises:
        UserError: the targets have no object.
    """
    labels: set[str] = set()
    for objects in targets:
        for _, label in objects:
            labels.add(label)
    if not labels:
        raise UserError(f"not one of {len(targets)} pictures has an object")
    category_ids = {label: number for number, label in enumerate(sorted(labels), 1)}
    cocoeval = need("pycocotools.cocoeval", "eval")
    with redirect_stdout(io.StringIO()):
        evaluation = cocoeval.COCOeval(_coco(targets, category_ids), _coco(predicted, category_ids), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # IoUs, recalls, classes; boxes of any size. What could not be measured is -1.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    precision_at_half = precision[0]
    average = precision[precision > -1].mean()
    average_at_half = precision_at_half[precision_at_half > -1].mean()
    return float(average), float(average_at_half)


def _coco(pictures: Sequence[Sequence[tuple[Any, ...]]], category_ids: Mapping[str, int]) -> Any:
    """pycocotools' data set of the boxes (corners, class and, of predicted ones, score) whose class has an id."""
    annotations: list[dict[str, Any]] = []
    for picture, boxes in enumerate(pictures):
        for corners, label, *score in boxes:
            if label in category_ids:
                annotation = _annotation(picture, corners, category_ids[label], *score)
                annotations.append({"id": len(annotations) + 1, **annotation})
    coco = need("pycocotools.coco", "eval").COCO()
    coco.dataset = {
        "images": [{"id": picture} for picture in range(len(pictures))],
        "categories": [{"id": number, "name": label} for label, number in category_ids.items()],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _annotation(picture: int, corners: Corners, category: int, score: float = 1.0) -> dict[str, Any]:
    x0, y0, x1, y1 = map(float, corners)
    width = x1 - x0
    height = y1 - y0
    return {
        "image_id": picture,
        "category_id": category,
        "score": score,
        "iscrowd": 0,
        "bbox": [x0, y0, width, height],
        "area": width * height,
    }


def mean_iou(masks: Iterable[tuple[NDArray, NDArray]], num_classes: int) -> tuple[float, float]:
    """Mean IoU of the classes that occur, computed over the pixels of all pictures, and the share of right pixels.

    Args:
        masks: for each picture, predicted and right class of each pixel, both (H, W); `IGNORED` pixels do not count.

    Raises:
        UserError: a mask has a class that is not below ``num_classes``, or no pixel counts.
    """
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    for predicted, target in masks:
        confusion += _confusion(predicted, target, num_classes)
    num_pixels = confusion.sum()
    if not num_pixels:
        raise UserError("no pixel of the masks has a class")
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    occurs = union > 0
    overlaps = right[occurs] / union[occurs]
    return float(overlaps.mean()), float(right.sum() / num_pixels)


def _confusion(predicted: NDArray, target: NDArray, num_classes: int) -> NDArray[np.int64]:
    """Number of pixels (right class, predicted class) of one picture."""
    if predicted.shape != target.shape:
        raise ValueError(f"mask {target.shape} and prediction {predicted.shape} differ in shape")
    counted = target != IGNORED
    right_classes = target[counted].astype(np.int64)
    if right_classes.size and right_classes.max() >= num_classes:
        raise UserError(f"a mask has the class {right_classes.max()}, and there are {num_classes}")
    class_pairs = right_classes * num_classes + predicted[counted]
    return np.bincount(class_pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def read_mask(encoded: Any, name: str) -> NDArray[np.uint8]:
    """(H, W) class numbers of a segmentation map (an 8-bit grey or palette PNG); UserError for other files."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_bytes(encoded))) as picture:
            if picture.mode not in ("L", "P"):
                raise UserError(
                    f"its mask is a {picture.mode} picture; one byte a pixel is needed (L or P)", where=name
                )
            return np.array(picture)
    except OSError as error:
        raise UserError(f"its mask cannot be read ({error})", where=name) from error
