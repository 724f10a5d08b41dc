"""The objects in a picture (COCO): their boxes and classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onepeace.data.batch import Batch
from onepeace.errors import expect
from onepeace.heads import Detection as DetectionHead
from onepeace.model import Encoder, Trained
from onepeace.train.supervised import Supervised, SupervisedOptions, check_head
from onepeace.train.term import check_targets

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe

BOXES = "boxes"
"""The target with the corners of the objects, [x0, y0, x1, y1] relative to the picture."""


class Detection(Supervised[SupervisedOptions]):
    """The losses of Faster R-CNN; the targets "boxes" and "box_labels" list the objects' corners
    and class names, and are empty where there is none."""

    target = "box_labels"
    task = "boxes"
    follows_pixels = True

    @classmethod
    def check(cls, options: SupervisedOptions, recipe: "Recipe", config: "Config") -> None:
        super().check(options, recipe, config)
        check_head(options, config, {"kind": "detection"})
        check_targets(options, [BOXES], recipe)

    def loss(self, outputs: Any, batch: Batch, model: Trained) -> Mapping[str, Tensor]:
        device = outputs["0"].device
        targets = []
        for boxes, labels, key in zip(batch.targets[BOXES], self.values(batch), batch.keys, strict=True):
            corners = torch.tensor(boxes, dtype=torch.float32, device=device).view(-1, 4)
            numbers = torch.tensor([self.number_of(label, key) for label in labels], dtype=torch.long, device=device)
            has_area = (corners[:, 2:] > corners[:, :2]).all(1)  # the logarithm of its sides is learned
            targets.append({"boxes": corners[has_area], "labels": numbers[has_area]})
        head = expect(expect(model, Encoder).heads[self.options.head], DetectionHead)
        found = head.losses(outputs, targets)
        return {f"{self.options.name}/{name.removeprefix('loss_')}": loss for name, loss in found.items()}
