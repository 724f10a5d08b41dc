"""Terms for task heads with outputs for every frame, pixel or object: events in a sound, masks, boxes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.data.batch import Batch
from onepeace.device import upload
from onepeace.errors import UserError, expect
from onepeace.evaluate.detections import IGNORED, read_mask
from onepeace.heads import Detection as DetectionHead
from onepeace.model import Encoder, Trained
from onepeace.train.passes import Passes
from onepeace.train.term import TermContext, check_targets
from onepeace.train.terms.heads import Supervised, SupervisedOptions, check_head

BOXES = "boxes"
"""Target with the corners of the objects, [x0, y0, x1, y1] relative to the picture."""


class Events(Supervised[SupervisedOptions]):
    """Events in a sound (DESED): binary cross entropy for each frame and class. The target "events" is a list of
    [onset, offset, class name], in seconds. The loss is averaged over the real frames of an item, then over items."""

    target = "events"
    task = "events"

    @classmethod
    def check(cls, options: SupervisedOptions, context: TermContext) -> None:
        super().check(options, context)
        modalities = {key for source in context.sources for key in options.on or source.modalities}
        for modality in sorted(modalities):
            augment = context.data.augment.get(modality, {})
            for option in ("shift", "mix"):
                if augment.get(option):
                    raise UserError(
                        f"data.augment.{modality}.{option} would move events in time; leave it out", where=options.where
                    )

    def outputs(self, passes: Passes) -> Tensor:
        """Logits (N, C) of all frames of all items, without padding."""
        key = passes.model.config.heads[self.options.head]["on"]
        padded = super().outputs(passes)
        return padded.flatten(0, 1)[passes.batch.real[key]]

    def loss(self, outputs: Tensor, batch: Batch, model: Trained) -> dict[str, Tensor]:
        key = model.config.heads[self.options.head]["on"]
        adapter: Any = model.adapters[key]
        lengths = batch.lengths[key] - 1
        frames = []
        events_of_items = batch.targets[self.target]
        for events, name, length in zip(events_of_items, batch.keys, lengths.tolist(), strict=True):
            frames.append(self._frames(events, name, length, adapter.seconds_per_token))
        target = upload(torch.cat(frames), outputs.device)
        loss = F.binary_cross_entropy_with_logits(outputs.float(), target, reduction="none").sum(1)
        share = torch.from_numpy(np.repeat(1 / lengths, lengths).astype(np.float32))
        return {self.options.name: (loss * upload(share, outputs.device)).sum() / len(lengths)}

    def _frames(self, events: Sequence[tuple[float, float, str]], key: str, count: int, seconds: float) -> Tensor:
        """Targets (L, C): 1 if a class sounds in the middle of a frame of ``seconds``."""
        target = np.zeros((count, len(self.labels)), dtype=np.float32)
        middles = (np.arange(count) + 0.5) * seconds
        for onset, offset, label in events:
            if onset >= count * seconds:  # after the part that was decoded
                continue
            inside = (middles >= onset) & (middles < offset)
            if not inside.any():  # shorter than a frame: the nearest one
                inside = np.arange(count) == np.abs(middles - (onset + offset) / 2).argmin()
            target[inside, self.number_of(label, key)] = 1.0
        return torch.from_numpy(target)


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


def _nearest_places(length: int, side: int) -> np.ndarray:
    """(length,) int64: for each place of a resized side, the nearest place of the original side."""
    return ((np.arange(length) + 0.5) * side / length).astype(np.int64)


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
        head = expect(expect(model, Encoder).heads[self.options.head], DetectionHead)
        losses = head.losses(outputs, targets)
        return {f"{self.options.name}/{name.removeprefix('loss_')}": loss for name, loss in losses.items()}
