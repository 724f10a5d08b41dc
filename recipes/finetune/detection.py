"""Detection of objects: torchvision's Faster R-CNN on a feature pyramid, its term, its results and their AP.

A recipe has `imports: [detection.py]`; commands that load such a model take `--import recipes/finetune/detection.py`.
"""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyramid import Pyramid  # beside this file
from torch import Tensor, nn

from onepeace.config.reader import Count, Positive
from onepeace.data.batch import Batch
from onepeace.device import upload
from onepeace.embed.predict import TASKS, Context, Task
from onepeace.errors import UserError, expect, need
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.task_metrics import METRICS, Metric, Predictions, relative, sizes_in_pixels
from onepeace.files.drawing import with_box
from onepeace.heads import HEADS, Head
from onepeace.layers.features import Features
from onepeace.layers.precision import without_autocast
from onepeace.model import Encoder, Trained
from onepeace.train.term import TermContext, check_targets
from onepeace.train.terms import TERMS
from onepeace.train.terms.heads import Supervised, SupervisedOptions, check_head

THRESHOLD = 0.5
"""Minimum score of a box that is printed or drawn."""
PATCH = 16
"""Side of a patch in the units of the detector, for any size in pixels: the strides of the pyramid are 4 to 32 units,
and 64 for the coarsest map subsampled by 2."""
BOXES = "boxes"
"""Target with the corners of the objects, [x0, y0, x1, y1] relative to the picture."""
Corners = tuple[float, ...]
"""x0, y0, x1, y1."""


@dataclass(frozen=True)
class DetectionOptions:
    """Options of a ``detection`` head in ``ModelConfig.heads``."""

    num_classes: Count
    channels: Count = 256
    """Channels of the pyramid."""
    hidden: Count = 1024
    """Width of the two layers on the features of a region."""
    anchor: Positive = 8.0
    """Side of the anchors, in strides of their map."""
    detections: Count = 100
    """Maximum number of boxes per picture."""


class Detector(Head):
    """Faster R-CNN (arXiv 1506.01497) on a ViTDet pyramid; regions, losses and hyper-parameters are torchvision's.

    In training mode it returns the maps of the pyramid by name, for `losses`; in evaluation mode, the boxes.
    """

    Options = DetectionOptions

    def __init__(self, dim: int, options: DetectionOptions):
        super().__init__()
        # torchvision is slow to import, and models without this head do not need it.
        from torchvision.models.detection import FasterRCNN
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.rpn import AnchorGenerator

        self.options = options
        self.pyramid = Pyramid(dim, options.channels)
        strides = [PATCH / 4 * 2**level for level in range(5)]
        anchor_sides = tuple((options.anchor * stride,) for stride in strides)
        aspect_ratios = ((0.5, 1.0, 2.0),) * len(strides)
        with torch.device("cpu"):  # anchors are not weights: they need values even if the model is on the meta device
            anchors = AnchorGenerator(anchor_sides, aspect_ratios)
        network = FasterRCNN(
            _Maps(options.channels),
            rpn_anchor_generator=anchors,
            box_head=TwoMLPHead(options.channels * 7 * 7, options.hidden),
            box_predictor=FastRCNNPredictor(options.hidden, options.num_classes + 1),  # class 0 is the background
            box_detections_per_img=options.detections,
        )
        self.rpn = network.rpn
        self.regions = network.roi_heads

    def forward(self, *passes: Features) -> Any:
        """Features of one pass over pictures -> in training the maps; else (B, detections, 6): corners x0, y0, x1, y1
        relative to the picture, score and class number, best first. Rows without a box have the score 0."""
        (features,) = passes
        levels = self.pyramid(features.feature_map())
        maps = {str(number): level for number, level in enumerate(levels)}
        maps["pool"] = nn.functional.max_pool2d(levels[-1], 1, 2)
        if self.training:
            return maps
        return self._detected(maps)

    def losses(self, maps: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN, over a whole batch.

        Args:
            maps: maps of the pictures, from `forward` in training mode.
            targets: for each picture "boxes" (N, 4), corners relative to it, and "labels" (N,), class numbers from 0.
        """
        with without_autocast(maps["0"].device.type):  # boxes are too coarse in half precision
            pictures = _pictures(maps)
            scaled_targets = []
            for target in targets:
                boxes = target["boxes"].float() * pictures.size
                scaled_targets.append({"boxes": boxes, "labels": target["labels"] + 1})
            proposals, rpn_losses = self.rpn(pictures.images, pictures.maps, scaled_targets)
            _, region_losses = self.regions(pictures.maps, proposals, pictures.images.image_sizes, scaled_targets)
        return {**rpn_losses, **region_losses}

    def _detected(self, maps: Mapping[str, Tensor]) -> Tensor:
        """The boxes of each picture, as `forward` returns them."""
        with without_autocast(maps["0"].device.type):  # boxes are too coarse in half precision
            pictures = _pictures(maps)
            proposals, _ = self.rpn(pictures.images, pictures.maps)
            detections, _ = self.regions(pictures.maps, proposals, pictures.images.image_sizes)
        result = pictures.size.new_zeros(len(detections), self.options.detections, 6)
        for rows, detection in zip(result, detections, strict=True):
            corners = detection["boxes"] / pictures.size
            scores = detection["scores"].unsqueeze(1)
            class_numbers = detection["labels"].unsqueeze(1) - 1
            rows[: len(scores)] = torch.cat([corners, scores, class_numbers], dim=1)
        return result


class _Pictures(NamedTuple):
    """A batch of pictures in the units of the detector, as torchvision takes them."""

    maps: dict[str, Tensor]
    """The maps in float32."""
    images: Any
    """ImageList without pixels."""
    size: Tensor
    """(4,) width, height, width and height."""


def _pictures(maps: Mapping[str, Tensor]) -> _Pictures:
    """The pictures whose finest map is a quarter of a patch in its stride."""
    from torchvision.models.detection.image_list import ImageList

    finest = maps["0"]
    height, width = (side * PATCH // 4 for side in finest.shape[2:])
    no_pixels = finest.new_empty(len(finest), 0, height, width)  # torchvision reads only the size of this tensor
    return _Pictures(
        maps={name: level.float() for name, level in maps.items()},
        images=ImageList(no_pixels, [(height, width)] * len(finest)),
        size=torch.tensor([width, height, width, height], dtype=torch.float32, device=finest.device),
    )


class _Maps(nn.Module):
    """Placeholder backbone: the constructor of FasterRCNN reads its ``out_channels``; it is never run."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels


class Detection(Supervised[SupervisedOptions]):
    """Boxes and classes of the objects in a picture (COCO): the losses of Faster R-CNN.

    The targets "boxes" and "box_labels" list corners and class names of the objects, and may be empty.
    """

    target = "box_labels"
    task = "boxes"
    follows_pixels = True

    @classmethod
    def check(cls, options: SupervisedOptions, context: TermContext) -> None:
        super().check(options, context)
        check_head(options, context.config, "kind", "detection")
        check_targets(options, [BOXES], context.sources)

    def loss(self, outputs: Any, batch: Batch, model: Trained) -> dict[str, Tensor]:
        device = outputs["0"].device
        targets = []
        boxes_of_items = batch.targets[BOXES]
        labels_of_items = batch.targets[self.target]
        for boxes, labels, key in zip(boxes_of_items, labels_of_items, batch.keys, strict=True):
            corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
            label_numbers = [self.number_of(label, key) for label in labels]
            numbers = torch.tensor(label_numbers, dtype=torch.long)
            has_area = (corners[:, 2:] > corners[:, :2]).all(1)  # the logarithm of the sides is learned
            target = {
                "boxes": upload(corners[has_area], device),
                "labels": upload(numbers[has_area], device),
            }
            targets.append(target)
        head = expect(expect(model, Encoder).heads[self.options.head], Detector)
        losses = head.losses(outputs, targets)
        return {f"{self.options.name}/{name.removeprefix('loss_')}": loss for name, loss in losses.items()}


def boxes(output: Tensor, context: Context) -> dict[str, Any]:
    """Boxes (1, N, 6) of a detector, best first, as corners relative to the picture, score and class number: those with
    a score above 0, with corners in pixels of the picture."""
    width, height = context.size
    boxes_of_picture = []
    for x0, y0, x1, y1, score, number in output[0].tolist():
        if score > 0:
            corners = [x0 * width, y0 * height, x1 * width, y1 * height]
            boxes_of_picture.append({"label": context.labels[int(number)], "score": score, "box": corners})
    return {"boxes": boxes_of_picture}


def likely(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The boxes of a result whose score reaches the threshold."""
    return [box for box in result["boxes"] if box["score"] >= THRESHOLD]


def cell(result: Mapping[str, Any]) -> str:
    """The likely boxes as a cell of a table."""
    return ", ".join(f"{box['label']} {box['score']:.2f}" for box in likely(result)) or "nothing"


def draw(picture: Any, result: Mapping[str, Any], text: str, labels: Sequence[str]) -> Any:
    """The picture with the likely boxes."""
    for box in likely(result):
        picture = with_box(picture, box["box"], f"{box['label']} {box['score']:.2f}")
    return picture


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


def figures(predictions: Predictions) -> list[Figure]:
    sizes = sizes_in_pixels(predictions.samples)
    predicted_boxes = []
    for result, size in zip(predictions.results, sizes, strict=True):
        boxes = []
        for box in result["boxes"]:
            corners = tuple(relative(box["box"], size))
            boxes.append((corners, box["label"], box["score"]))
        predicted_boxes.append(boxes)
    target_boxes = []
    for corners_of_boxes, sample in zip(predictions.targets, predictions.samples, strict=True):
        box_labels = sample.targets["box_labels"]
        target_boxes.append(list(zip(map(tuple, corners_of_boxes), box_labels, strict=True)))
    average, average_at_half = box_ap(predicted_boxes, target_boxes)
    return [
        Figure("box AP", average, chance=0.0, n=len(predicted_boxes)),
        Figure("box AP50", average_at_half, chance=0.0, n=len(predicted_boxes)),
    ]


HEADS["detection"] = Detector
TERMS["detection"] = Detection
TASKS["boxes"] = Task(boxes, cell, column="boxes", draw=draw, needs_size=True)
METRICS["boxes"] = Metric("boxes", figures)
