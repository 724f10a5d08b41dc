"""The objects in a picture (COCO): their boxes and classes."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.heads import Detection as DetectionHead
from onepeace.model import OnePeace
from onepeace.train.terms.supervised import Supervised

BOXES = "boxes"
"""The target with the corners of the objects, [x0, y0, x1, y1] relative to the picture."""


class Detection(Supervised):
    """``detection/image``: the losses of Faster R-CNN; the targets "boxes" and "box_labels" list the objects' corners
    and class names, and are empty where there is none."""

    target = "box_labels"
    task = "boxes"
    follows_pixels = True

    @classmethod
    def labels_in(cls, value: Any) -> Sequence[str]:
        return value

    @classmethod
    def example(cls, options: Any, model: OnePeace) -> dict[str, Any]:
        raise UserError("a plan cannot follow a detector: which regions it looks at depends on the pictures")

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        super().check(name, options, recipe, config)
        where = f"objective.{name.text}"
        if (kind := config.model.heads[options.head]["kind"]) != "detection":
            raise UserError(f"{where} needs model.heads.{options.head}.kind: detection; it is {kind}")
        for pair in cls.pairs(name, recipe):
            for source in recipe.data.train:
                if source.name == pair and BOXES not in source.targets:
                    raise UserError(f"{where} reads the target {BOXES}; add it to targets of {source.shards}")

    def loss(self, outputs: Any, batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        device = outputs["0"].device
        targets = []
        for boxes, labels, key in zip(batch.targets[BOXES], self.values(batch), batch.keys, strict=True):
            corners = torch.tensor(boxes, dtype=torch.float32, device=device).view(-1, 4)
            numbers = torch.tensor([self.number_of(label, key) for label in labels], dtype=torch.long, device=device)
            has_area = (corners[:, 2:] > corners[:, :2]).all(1)  # the logarithm of its sides is learned
            targets.append({"boxes": corners[has_area], "labels": numbers[has_area]})
        head = cast(DetectionHead, model.heads[self.options.head])
        found = head.losses(outputs, targets)
        return {f"{self.name.text}/{name.removeprefix('loss_')}": loss for name, loss in found.items()}
