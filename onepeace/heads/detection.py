"""Detection head: torchvision's Faster R-CNN on a feature pyramid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.layers.features import Features
from onepeace.layers.precision import without_autocast

from .head import Head
from .pyramid import Pyramid

PATCH = 16
"""Side of a patch in the units of the detector, for any size in pixels: the strides of the pyramid are 4 to 32 units,
and 64 for the coarsest map subsampled by 2."""


@dataclass(frozen=True)
class DetectionOptions:
    """Options of a ``detection`` head in ``ModelConfig.heads``."""

    num_classes: int
    channels: int = 256
    """Channels of the pyramid."""
    hidden: int = 1024
    """Width of the two layers on the features of a region."""
    anchor: float = 8.0
    """Side of the anchors, in strides of their map."""
    detections: int = 100
    """Maximum number of boxes per picture."""


class Detection(Head):
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
        sides = tuple((options.anchor * PATCH / 4 * 2**level,) for level in range(5))
        with torch.device("cpu"):  # anchors are not weights: they need values even if the model is on the meta device
            anchors = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides))
        network = FasterRCNN(
            _Maps(options.channels),
            rpn_anchor_generator=anchors,
            box_head=TwoMLPHead(options.channels * 7 * 7, options.hidden),
            box_predictor=FastRCNNPredictor(options.hidden, options.num_classes + 1),  # class 0 is the background
            box_detections_per_img=options.detections,
        )
        self.rpn, self.regions = network.rpn, network.roi_heads

    def forward(self, *passes: Features) -> Any:
        """Features of one pass over pictures -> in training the maps; else (B, detections, 6): corners x0, y0, x1, y1
        relative to the picture, score and class number, best first. Rows without a box have the score 0."""
        (features,) = passes
        levels = self.pyramid(features.feature_map())
        maps = {str(i): level for i, level in enumerate(levels)}
        maps["pool"] = nn.functional.max_pool2d(levels[-1], 1, 2)
        return maps if self.training else self._found(maps)

    def losses(self, maps: Mapping[str, Tensor], targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN, over a whole batch.

        Args:
            maps: maps of the pictures, from `forward` in training mode.
            targets: for each picture "boxes" (N, 4), corners relative to it, and "labels" (N,), class numbers from 0.
        """
        with without_autocast(maps["0"].device.type):  # boxes are too coarse in half precision
            maps, images, unit = self._placed(maps)
            own = [{"boxes": one["boxes"].float() * unit, "labels": one["labels"] + 1} for one in targets]
            proposals, first = self.rpn(images, maps, own)
            _, second = self.regions(maps, proposals, images.image_sizes, own)
        return {**first, **second}

    def _found(self, maps: Mapping[str, Tensor]) -> Tensor:
        with without_autocast(maps["0"].device.type):  # boxes are too coarse in half precision
            maps, images, unit = self._placed(maps)
            proposals, _ = self.rpn(images, maps)
            found, _ = self.regions(maps, proposals, images.image_sizes)
        result = unit.new_zeros(len(found), self.options.detections, 6)
        for row, one in zip(result, found, strict=True):
            columns = (one["boxes"] / unit, one["scores"][:, None], one["labels"][:, None] - 1)
            row[: len(one["scores"])] = torch.cat(columns, dim=1)
        return result

    def _placed(self, maps: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any, Tensor]:
        """The maps in float32, an ImageList of their pictures for torchvision, and (width, height, width, height)."""
        from torchvision.models.detection.image_list import ImageList

        finest = maps["0"]
        height, width = (side * PATCH // 4 for side in finest.shape[2:])
        # torchvision reads only the size of this tensor.
        images = ImageList(finest.new_empty(len(finest), 0, height, width), [(height, width)] * len(finest))
        unit = torch.tensor([width, height, width, height], dtype=torch.float32, device=finest.device)
        return {name: level.float() for name, level in maps.items()}, images, unit


class _Maps(nn.Module):
    """Placeholder backbone: the constructor of FasterRCNN reads its ``out_channels``; it is never run."""

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels
