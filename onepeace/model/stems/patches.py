"""Image stems trained from scratch: pixels -> one token per patch."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HMLPStem(nn.Module):
    """The released stem, a hierarchical MLP without overlap between patches ("Three things about ViT").

    Convolutions 4x4 / 4, 2x2 / 2 and 2x2 / 2 with D/4, D/4 and D channels, LayerNorm and GELU between: stride 16.
    """

    def __init__(self, dim: int, patch_size: int, channels: int = 3):
        super().__init__()
        if patch_size != 16:
            raise ValueError(f"the hmlp stem has patches of 16, not {patch_size}; stem: conv takes other powers of two")
        inner = dim // 4
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(channels, inner, kernel_size=4, stride=4),
                nn.Conv2d(inner, inner, kernel_size=2, stride=2),
                nn.Conv2d(inner, dim, kernel_size=2, stride=2),
            ]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(inner), nn.LayerNorm(inner)])

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, H / 16, W / 16, D)."""
        # Channels-last memory makes both layouts views of each other: the norms need channels in the last dimension.
        x = pixels.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.gelu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.convs[-1](x).permute(0, 2, 3, 1)


class ConvStem(nn.Module):
    """Overlapping 3x3 / 2 convolutions ("Early convolutions help Transformers see better"): needs fewer images.

    There are log2(patch_size) convolutions, with channels doubling up to D / 2, then a linear layer to D.
    """

    def __init__(self, dim: int, patch_size: int, channels: int = 3):
        super().__init__()
        depth = int(math.log2(patch_size))
        if 2**depth != patch_size or depth < 1:
            raise ValueError(f"the conv stem needs a patch that is a power of two, not {patch_size}")
        widths = [channels] + [max(dim // 2 ** (depth - i), 8) for i in range(depth)]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.proj = nn.Linear(widths[-1], dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, H / patch, W / patch, D)."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.gelu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.proj(x.permute(0, 2, 3, 1))
