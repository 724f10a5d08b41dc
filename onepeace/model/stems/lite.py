"""EfficientNet-Lite as an image stem (Tan and Le, arXiv 1905.11946; the variant without squeeze-and-excitation, with
ReLU6): pixels -> one token per 32 x 32 pixels. timm has it too, but our models load without importing timm."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.precision import cast_once

from .pretrained import PretrainedStem, fold_batch_norms
from .timm import HEADLESS, create_network


class Stage(NamedTuple):
    """Blocks of equal size."""

    expansion: int
    kernel: int
    stride: int
    """Stride of the first block; the others have 1."""
    channels: int
    depth: int
    """Number of blocks."""


STAGES = (
    Stage(expansion=1, kernel=3, stride=1, channels=16, depth=1),
    Stage(expansion=6, kernel=3, stride=2, channels=24, depth=2),
    Stage(expansion=6, kernel=5, stride=2, channels=40, depth=2),
    Stage(expansion=6, kernel=3, stride=2, channels=80, depth=3),
    Stage(expansion=6, kernel=5, stride=1, channels=112, depth=3),
    Stage(expansion=6, kernel=5, stride=2, channels=192, depth=4),
    Stage(expansion=6, kernel=3, stride=1, channels=320, depth=1),
)
"""Stages of Lite0."""
IN_CACHE = 420_000
"""Maximum bytes per input channel of the images that a CPU computes in one part. Larger parts exceed its cache: 32
images of 160 x 160 take 2.5 times as long in one part as in parts of 4 (float32, AMD EPYC, Zen 4); in half precision
parts with twice as many images are fastest."""
SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}
"""Width and depth multipliers; the first and the last layer are never scaled."""


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: the output has ceil(size / stride) positions, and odd padding has its
    extra row or column at the end."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel_size[0]
        stride = self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        rows = _missing(x.shape[2], kernel, stride)
        columns = _missing(x.shape[3], kernel, stride)
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return F.conv2d(x, self.weight, self.bias, stride=stride, groups=self.groups)


def _missing(size: int, kernel: int, stride: int) -> int:
    """Positions that a side lacks for ceil(size / stride) windows."""
    covered = (math.ceil(size / stride) - 1) * stride + kernel
    return max(covered - size, 0)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; added to the input where the shapes allow (MobileNetV2)."""

    def __init__(self, expansion: int, kernel: int, stride: int, before: int, after: int):
        super().__init__()
        inner = expansion * before
        self.expand = nn.Conv2d(before, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, after, 1)
        self.is_residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.is_residual else y


class LiteNetwork(nn.Module):
    """EfficientNet-Lite with folded batch norms: (B, 3, H, W) -> (B, 1280, ceil(H / 32), ceil(W / 32))."""

    def __init__(self, width: float, depth: float):
        super().__init__()
        self.first = SameConv(3, 32, 3, 2)
        blocks = []
        before = 32
        for stage in STAGES:
            after = _multiple_of_8(width * stage.channels)
            is_scaled = stage not in (STAGES[0], STAGES[-1])
            num_blocks = math.ceil(depth * stage.depth) if is_scaled else stage.depth
            for number in range(num_blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(InvertedResidual(stage.expansion, stage.kernel, stride, before, after))
                before = after
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Conv2d(before, 1280, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.first(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.last(x), inplace=True)


def _multiple_of_8(channels: float) -> int:
    """Nearest multiple of 8, not below nine tenths of the value (released rule)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class LiteStem(PretrainedStem):
    """Stem with the feature map of EfficientNet-Lite, trained on ImageNet-1k with labels. Pixels range from -1 to 1.

    Args:
        name: lite0, lite1 or lite2.
    """

    def __init__(self, dim: int, patch_size: int, name: str = "lite0"):
        if patch_size != 32 or name not in SCALES:
            raise ValueError(f"the stem {name!r} has patches of 32, not {patch_size}; known: {', '.join(SCALES)}")
        super().__init__(dim, 1280)
        self.name = name
        self.network = LiteNetwork(*SCALES[name])

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 32, W / 32, 1280)."""
        x = cast_once(pixels.contiguous(memory_format=torch.channels_last))
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            bytes_of_image = x.shape[2] * x.shape[3] * x.element_size()
            parts = x.split(max(1, IN_CACHE // bytes_of_image))
            return torch.cat([self.network(part) for part in parts]).permute(0, 2, 3, 1)
        return self.network(x).permute(0, 2, 3, 1)

    def load_pretrained(self) -> None:
        network: Any = create_network(f"tf_efficientnet_{self.name}", pretrained=True, **HEADLESS)
        pretrained = fold_batch_norms(network).state_dict().values()  # the same layers in the same order
        self.network.load_state_dict(dict(zip(self.network.state_dict(), pretrained, strict=True)))
