"""Segmentation head: a class for each pixel."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.features import Features

from .head import Head
from .pyramid import LayerNorm2d, Pyramid


@dataclass(frozen=True)
class SegmentationOptions:
    """Options of a ``segmentation`` head in ``ModelConfig.heads``."""

    num_classes: int
    channels: int = 256
    """Channels of the pyramid and of the layer before the classes."""


class Segmentation(Head):
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
