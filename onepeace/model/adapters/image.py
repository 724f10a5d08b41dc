"""Image: pixels -> one token per patch."""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.position import GridPositions, grid_buckets, grid_table_rows, stretch_grid_table

from ..sequence import Stem, TokenSequence
from .base import Adapter


class HMLPStem(nn.Module):
    """The released stem: patches see nothing of their neighbours (hierarchical MLP of "Three things about ViT").

    Convolutions 4x4 / 4, 2x2 / 2 and 2x2 / 2 with D/4, D/4 and D channels, LayerNorm and GELU between: stride 16.
    """

    def __init__(self, dim: int, patch_size: int):
        super().__init__()
        if patch_size != 16:
            raise ValueError(f"the hmlp stem has patches of 16, not {patch_size}; stem: conv takes other powers of two")
        inner = dim // 4
        self.convs = nn.ModuleList(
            [nn.Conv2d(3, inner, 4, 4), nn.Conv2d(inner, inner, 2, 2), nn.Conv2d(inner, dim, 2, 2)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(inner), nn.LayerNorm(inner)])

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 16, W / 16, D)."""
        # Channels-last memory makes both layouts views of each other: the norms want channels in the last dimension.
        x = pixels.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = F.gelu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.convs[-1](x).permute(0, 2, 3, 1)


class ConvStem(nn.Module):
    """Overlapping 3x3 / 2 convolutions ("Early convolutions help Transformers see better"): learns from fewer pictures.

    log2(patch_size) of them, channels doubling up to D / 2, then a linear layer to D.
    """

    def __init__(self, dim: int, patch_size: int):
        super().__init__()
        depth = int(math.log2(patch_size))
        if 2**depth != patch_size or depth < 1:
            raise ValueError(f"the conv stem needs a patch that is a power of two, not {patch_size}")
        widths = [3] + [max(dim // 2 ** (depth - i), 8) for i in range(depth)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, padding=1) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.LayerNorm(o) for o in widths[1:])
        self.proj = nn.Linear(widths[-1], dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / patch, W / patch, D)."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.gelu(norm(conv(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return self.proj(x.permute(0, 2, 3, 1))


STEMS = {"hmlp": HMLPStem, "conv": ConvStem}


class ImageAdapter(Adapter):
    """Patches of a picture of any size that is a multiple of the patch, square or not.

    Batch: ``pixels`` (B, 3, H, W) float, normalised. Positions and bias table are learned on square grids of ``grid``
    and ``bias_grid`` patches a side and stretched to the picture's own.

    Args:
        patch_size: side of a patch in pixels.
        grid: side of the grid of learned positions.
        bias_grid: r, side of the grid of the bias table; it has (2 r - 1)^2 + 3 rows.
        stem: a key of STEMS.
    """

    def __init__(
        self,
        key: str,
        dim: int,
        num_heads: int,
        num_tables: int,
        *,
        patch_size: int = 16,
        grid: int = 16,
        bias_grid: int = 16,
        stem: str = "hmlp",
        num_types: int = 0,
    ):
        super().__init__(key, dim, num_heads, num_tables, grid_table_rows(bias_grid), num_types)
        if stem not in STEMS:
            raise ValueError(f"no stem {stem!r}; known: {', '.join(STEMS)}")
        self.patch_size, self.bias_grid = patch_size, bias_grid
        self.stem = STEMS[stem](dim, patch_size)
        self.pos_embed = GridPositions(dim, grid)

    def stem_tokens(self, batch: dict[str, Tensor]) -> Stem:
        pixels = batch["pixels"]
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels should be (B, 3, H, W), not {tuple(pixels.shape)}")
        height, width = pixels.shape[2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"a picture of {height} x {width} pixels is not a multiple of the patch, {self.patch_size}"
            )
        x = self.stem(pixels)
        return Stem(x.flatten(1, 2), None, (x.shape[1], x.shape[2]), batch.get("type_ids"))

    def embed_positions(self, stem: Stem, keep: Tensor | None = None) -> TokenSequence:
        tokens, mask = self.with_cls(stem)
        tokens = tokens + self.pos_embed(stem.grid)
        rows, columns = stem.grid
        buckets = grid_buckets(rows, columns, tokens.device)
        tables = [stretch_grid_table(table, self.bias_grid, rows, columns) for table in self.bias_tables]
        return self.assemble(tokens, mask, stem, buckets, tables, keep)

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        count, _, height, width = batch["pixels"].shape
        return torch.full((count,), (height // self.patch_size) * (width // self.patch_size))

    def token_positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """(L, 2) row and column of each patch."""
        rows, columns = (side // self.patch_size for side in batch["pixels"].shape[-2:])
        return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)), "patch"

    @staticmethod
    def decoder_positions(dim: int, *, grid: int = 16, **_: Any) -> nn.Module:
        return GridPositions(dim, grid)
