"""Segmentation: a class for each pixel from a feature pyramid, its term, its results and their mean IoU.

A recipe has `imports: [segmentation.py]`; commands that load such a model take
`--import recipes/finetune/segmentation.py`.
"""

import colorsys
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pyramid import LayerNorm2d, Pyramid  # beside this file
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config.reader import Count
from onepeace.data.batch import Batch
from onepeace.device import upload
from onepeace.embed.predict import TASKS, Context, Task
from onepeace.errors import UserError
from onepeace.evaluate.metrics import Figure
from onepeace.evaluate.protocols.task_metrics import METRICS, Metric, Predictions
from onepeace.files.drawing import label
from onepeace.files.source import read_bytes
from onepeace.heads import HEADS, Head
from onepeace.layers.features import Features
from onepeace.model import Trained
from onepeace.train.terms import TERMS
from onepeace.train.terms.heads import Supervised, SupervisedOptions

IGNORED = 255
"""Value of a mask for pixels that are not evaluated."""


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of a ``segmentation`` head in ``ModelConfig.heads``."""

    num_classes: Count
    channels: Count = 256
    """Channels of the pyramid and of the layer before the classes."""


class SegmentationHead(Head):
    """Logits on a grid four times as fine as the patches: a quarter of the picture's sides for patches of 16 pixels.

    The maps of a pyramid (ViTDet) are resized to the finest one and added, as in Semantic FPN (arXiv 1901.02446,
    section 3.1), but without its convolutions between upsampling steps, which those of the pyramid replace. A 3x3
    convolution and a linear layer follow. As in Semantic FPN and SegFormer (arXiv 2105.15203), upsampling to the size
    of the picture is a separate last step, here by the caller:

        logits = model.predict({"image": {"pixels": pixels}}, head="segmentation")
        logits = F.interpolate(logits, pixels.shape[2:], mode="bilinear", align_corners=False)
    """

    Options = SegmentationOptions

    def __init__(self, dim: int, options: SegmentationOptions):
        super().__init__()
        channels = options.channels
        self.pyramid = Pyramid(dim, channels)
        self.fuse = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = LayerNorm2d(channels)
        self.out = nn.Linear(channels, options.num_classes)

    def forward(self, *passes: Features) -> Tensor:
        """Features of one pass over pictures -> logits (B, num_classes, 4 rows, 4 columns)."""
        (features,) = passes
        finest, *coarser_maps = self.pyramid(features.feature_map())
        size = finest.shape[2:]
        x = finest
        for coarser in coarser_maps:
            x = x + F.interpolate(coarser, size, mode="bilinear", align_corners=False)
        x = F.gelu(self.norm(self.fuse(x)))
        logits = self.out(torch.movedim(x, 1, -1))
        return torch.movedim(logits, -1, 1)


class Segmentation(Supervised[SupervisedOptions]):
    """Class of each pixel (ADE20K): cross entropy at the size of the model's input, averaged over pixels with a class.

    The target "mask" is a PNG of class numbers, resized to the model's input; `IGNORED` means no class.
    """

    target = "mask"
    task = "mask"
    follows_pixels = True

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        modality = model.config.heads[self.options.head]["on"]
        size = tuple(batch.inputs[modality]["pixels"].shape[-2:])
        masks = []
        for encoded, key in zip(batch.targets[self.target], batch.keys, strict=True):
            masks.append(self._mask(encoded, key, size))
        target = upload(torch.stack(masks), outputs.device)
        logits = F.interpolate(outputs.float(), size, mode="bilinear", align_corners=False)
        total = F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="sum")
        num_pixels = (target != IGNORED).sum().clamp_min(1)
        return {self.options.name: total / num_pixels}

    def _mask(self, encoded: bytes, key: str, size: tuple[int, ...]) -> Tensor:
        """Mask (H, W) int64, resized by nearest neighbour."""
        mask = read_mask(encoded, key)
        classes = mask[mask != IGNORED]
        if classes.size and classes.max() >= len(self.labels):
            raise UserError(f"its mask has the class {classes.max()}, and the head has {len(self.labels)}", where=key)
        rows = _nearest_places(size[0], mask.shape[0])
        columns = _nearest_places(size[1], mask.shape[1])
        return torch.from_numpy(mask[rows][:, columns].astype(np.int64))


def _nearest_places(length: int, side: int) -> NDArray:
    """(length,) int64: for each place of a resized side, the nearest place of the original side."""
    return ((np.arange(length) + 0.5) * side / length).astype(np.int64)


def mask(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, C, h, w) on a grid: the class number of each pixel as a uint8 array, and each class's share."""
    width, height = context.size
    logits = F.interpolate(output, (height, width), mode="bilinear", align_corners=False)[0]
    classes = logits.argmax(0)
    counts = classes.flatten().bincount(minlength=output.shape[1]).tolist()
    shares = []
    for number, count in enumerate(counts):
        if count:
            shares.append({"label": context.labels[number], "share": count / (width * height)})
    shares.sort(key=lambda entry: -entry["share"])
    return {"labels": shares, "mask": classes.to(torch.uint8).numpy()}


def cell(result: Mapping[str, Any]) -> str:
    """The classes of a picture and their shares as a cell of a table."""
    return ", ".join(f"{entry['label']} {entry['share']:.0%}" for entry in result["labels"])


def draw(picture: Image.Image, result: Mapping[str, Any], text: str, labels: Sequence[str]) -> Image.Image:
    """The picture with its mask."""
    return with_mask(picture, result["mask"], [entry["label"] for entry in result["labels"]], labels)


def with_mask(
    picture: Image.Image, mask: NDArray, present: Sequence[str], labels: Sequence[str], opacity: float = 0.5
) -> Image.Image:
    """A copy with each class in its own colour, and the names of the classes that occur.

    Args:
        mask: (H, W) class numbers, scaled to the picture.
        present: names of the classes that occur.
        labels: names of all classes, in the order of their numbers.
    """
    colours = np.array([colour_of(number) for number in range(len(labels))], dtype=np.uint8)
    layer = Image.fromarray(colours[mask]).resize(picture.size, Image.Resampling.NEAREST)
    drawn = Image.blend(picture, layer, opacity)
    draw = ImageDraw.Draw(drawn)
    top = 4.0
    for name in present:
        colour = colour_of(list(labels).index(name))
        bottom = label(draw, name, (4.0, top), drawn.size, colour, below=True)
        top = bottom + 2
    return drawn


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour for the class of this number; consecutive numbers differ clearly (hues by the golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.75, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


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
    try:
        with Image.open(io.BytesIO(read_bytes(encoded))) as picture:
            if picture.mode not in ("L", "P"):
                raise UserError(
                    f"its mask is a {picture.mode} picture; one byte a pixel is needed (L or P)", where=name
                )
            return np.array(picture)
    except OSError as error:
        raise UserError(f"its mask cannot be read ({error})", where=name) from error


def figures(predictions: Predictions) -> list[Figure]:
    num_classes = len(predictions.labels)
    num_pictures = len(predictions.results)
    overlap, pixel_accuracy = mean_iou(_mask_pairs(predictions), num_classes)
    # Chance levels of uniform guesses if all classes have equally many pixels.
    chance_iou = 1 / (2 * num_classes - 1)
    return [
        Figure("mIoU", overlap, chance_iou, num_pictures),
        Figure("pixel accuracy", pixel_accuracy, 1 / num_classes, num_pictures),
    ]


def _mask_pairs(predictions: Predictions) -> Iterator[tuple[NDArray, NDArray]]:
    """Predicted and right mask of each picture, one after another: those of a whole set may not fit into memory."""
    results, targets, _, samples = predictions
    for result, target, sample in zip(results, targets, samples, strict=True):
        yield result["mask"], read_mask(target, sample.key)


HEADS["segmentation"] = SegmentationHead
TERMS["segmentation"] = Segmentation
TASKS["mask"] = Task(mask, cell, column="classes", draw=draw, needs_size=True)
METRICS["mask"] = Metric("mask", figures)
