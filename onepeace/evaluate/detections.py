"""Metrics of localisation: events in time, objects in boxes, classes of pixels."""

import io
from collections.abc import Iterable, Sequence
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


def event_f1(found: Sequence[Sequence[Event]], targets: Sequence[Sequence[Event]]) -> float:
    """Event-based F1, the mean over the classes of the targets (Mesaros, Heittola, Virtanen, 2016; as in DESED).

    A found event is right if a target of its class begins within `COLLAR` of it and ends within the larger of `COLLAR`
    and `SHARE` of the target's length. Each event is matched at most once, by a maximum matching.
    """
    sparse, matching = need("scipy.sparse", "eval"), need("scipy.sparse.csgraph", "eval")
    classes = sorted({label for events in targets for _, _, label in events})
    if not classes:
        raise UserError(f"not one of {len(targets)} sounds has an event")
    scores = []
    for name in classes:
        right = number_found = number_right = 0
        for ours, theirs in zip(found, targets, strict=True):
            own = [event for event in ours if event[2] == name]
            real = [event for event in theirs if event[2] == name]
            number_found, number_right = number_found + len(own), number_right + len(real)
            fits = np.array([[_fits(a, b) for b in real] for a in own], dtype=np.int8).reshape(len(own), len(real))
            if fits.any():
                right += int(
                    (matching.maximum_bipartite_matching(sparse.csr_array(fits), perm_type="column") >= 0).sum()
                )
        scores.append(2 * right / (number_found + number_right))
    return float(np.mean(scores))


def _fits(found: Event, target: Event) -> bool:
    offset = max(COLLAR, SHARE * (target[1] - target[0]))
    return abs(found[0] - target[0]) <= COLLAR and abs(found[1] - target[1]) <= offset


Corners = tuple[float, ...]
"""x0, y0, x1, y1."""


def box_ap(
    found: Sequence[Sequence[tuple[Corners, str, float]]], targets: Sequence[Sequence[tuple[Corners, str]]]
) -> tuple[float, float]:
    """Average precision of boxes as in COCO, the mean over the classes of the targets: over IoUs of 0.5 to 0.95,
    and at 0.5. Computed by pycocotools, without crowd regions.

    Args:
        found: for each picture, corners, class and score of each box found; the best hundred of a class count.
        targets: for each picture, corners and class of each object, in the same units.
    """
    coco, evaluation = need("pycocotools.coco", "eval").COCO, need("pycocotools.cocoeval", "eval").COCOeval
    numbers = {label: i for i, label in enumerate(sorted({label for inside in targets for _, label in inside}), 1)}
    if not numbers:
        raise UserError(f"not one of {len(targets)} pictures has an object")

    def rows(pictures: Sequence[Sequence[tuple[Any, ...]]]) -> list[dict[str, Any]]:
        return [
            _annotation(i, corners, numbers[label], *score)
            for i, inside in enumerate(pictures)
            for corners, label, *score in inside
            if label in numbers
        ]

    with redirect_stdout(io.StringIO()):
        real, ours = coco(), coco()
        for one, pictures in ((real, targets), (ours, found)):
            annotations = [{"id": number, **row} for number, row in enumerate(rows(pictures), 1)]
            images = [{"id": i} for i in range(len(targets))]
            categories = [{"id": number, "name": label} for label, number in numbers.items()]
            one.dataset = {"images": images, "categories": categories, "annotations": annotations}
            one.createIndex()
        measured = evaluation(real, ours, "bbox")
        measured.evaluate()
        measured.accumulate()
    precision = measured.eval["precision"][:, :, :, 0, -1]  # IoUs, recalls, classes; boxes of any size
    return tuple(float(part[part > -1].mean()) for part in (precision, precision[0]))  # type: ignore[return-value]


def _annotation(picture: int, corners: Corners, category: int, score: float = 1.0) -> dict[str, Any]:
    x0, y0, x1, y1 = map(float, corners)
    box = [x0, y0, x1 - x0, y1 - y0]
    about = {"image_id": picture, "category_id": category, "score": score, "iscrowd": 0}
    return {**about, "bbox": box, "area": box[2] * box[3]}


def mean_iou(pairs: Iterable[tuple[NDArray, NDArray]], num_classes: int) -> tuple[float, float]:
    """Mean IoU of the classes that occur, computed over the pixels of all pictures, and the share of right pixels.

    Args:
        pairs: for each picture, predicted and right class of each pixel, both (H, W); `IGNORED` pixels do not count.
    """
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    for predicted, target in pairs:
        if predicted.shape != target.shape:
            raise ValueError(f"mask {target.shape} and prediction {predicted.shape} differ in shape")
        known = target != IGNORED
        if known.any() and int(target[known].max()) >= num_classes:
            raise UserError(f"a mask has the class {int(target[known].max())}, and there are {num_classes}")
        pairs_of_classes = target[known].astype(np.int64) * num_classes + predicted[known]
        counts += np.bincount(pairs_of_classes, minlength=num_classes**2).reshape(num_classes, num_classes)
    right = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - right
    if not counts.sum():
        raise UserError("no pixel of the masks has a class")
    return float((right[union > 0] / union[union > 0]).mean()), float(right.sum() / counts.sum())


def read_mask(encoded: Any, name: str) -> NDArray[np.uint8]:
    """(H, W) class numbers of a segmentation map (an 8-bit grey or palette PNG); UserError for other files."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read_bytes(encoded))) as picture:
            if picture.mode not in ("L", "P"):
                raise UserError(f"{name}: its mask is a {picture.mode} picture; one byte a pixel is needed (L or P)")
            return np.array(picture)
    except OSError as error:
        raise UserError(f"{name}: its mask cannot be read ({error})") from error
