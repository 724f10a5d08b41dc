"""Detection head: torchvision's Faster R-CNN on a feature pyramid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
