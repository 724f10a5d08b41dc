"""Image: pixels -> one token per patch."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.config.reader import Count, Natural, Share
from onepeace.layers.position import GridPositions, grid_buckets, grid_table_rows, stretch_grid_table

from ..sequence import StemOutput, TokenSequence
from ..stems import IMAGE_STEMS, PretrainedStem
from .base import Adapter, AdapterOptions


class ImageAdapter(Adapter):
    """Adapter for images of any size that is a multiple of the patch size, square or not; one token per patch.

    Batch: ``pixels`` (B, channels, H, W) float, normalised. Positions and bias table are learned on square grids with a
    side of ``grid`` and ``bias_grid`` patches, and resized to the image.

    Args:
        patch_size: side of a patch in pixels.
        grid: side of the grid of learned positions.
        bias_grid: r, side of the grid of the bias table; it has (2 r - 1)^2 + 3 rows.
        stem: a key of IMAGE_STEMS.
        name: name of the timm model, for the stem timm.
        channels: channels of the pixels, such as 1 of depth; stems other than hmlp and conv have 3.
        cls_hidden, cls_dropout, cls_drop_path: see `make_cls_mlp`.
    """

    def __init__(
        self,
        options: AdapterOptions,
        *,
        patch_size: Count = 16,
        grid: Count = 16,
        bias_grid: Count = 16,
        stem: str = "hmlp",
        name: str | None = None,
        channels: Count = 3,
        cls_hidden: Natural = 0,
        cls_dropout: Share = 0.0,
        cls_drop_path: Share = 0.0,
    ):
        super().__init__(options, grid_table_rows(bias_grid))
        if stem not in IMAGE_STEMS:
            raise ValueError(f"no stem {stem!r}; known: {', '.join(IMAGE_STEMS)}")
        if (stem == "timm") != bool(name):
            raise ValueError(f"the stem {stem!r} got name {name!r}; timm needs a name, other stems take none")
        self.patch_size = patch_size
        self.bias_grid = bias_grid
        self.channels = channels
        stem_options: dict[str, Any] = {"name": name} if name else {}
        if channels != 3:
            if "channels" not in inspect.signature(IMAGE_STEMS[stem]).parameters:
                raise ValueError(f"the stem {stem!r} reads 3 channels, not {channels}; hmlp and conv read any number")
            stem_options["channels"] = channels
        self.stem = IMAGE_STEMS[stem](options.dim, patch_size, **stem_options)
        self.cls_mlp = self.make_cls_mlp(options.dim, cls_hidden, cls_dropout, cls_drop_path)
        self.pos_embed = GridPositions(options.dim, grid)

    def stem_tokens(self, batch: dict[str, Tensor]) -> StemOutput:
        pooled = None
        if "features" in batch or isinstance(self.stem, PretrainedStem):
            features = batch.get("features")
            if features is None:
                features = self.stem_features(batch)
            x = self.pretrained_stem().project(features)
            pooled = self.pooled(features.flatten(1, 2), None)
        else:
            x = self.stem(self._pixels(batch))
        return StemOutput(
            tokens=x.flatten(1, 2),
            padding_mask=None,
            grid=(x.shape[1], x.shape[2]),
            type_ids=batch.get("type_ids"),
            pooled=pooled,
        )

    def stem_features(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, rows, columns, channels)."""
        return self.pretrained_stem().features(self._pixels(batch))

    def _pixels(self, batch: dict[str, Tensor]) -> Tensor:
        pixels = batch["pixels"]
        if pixels.ndim != 4 or pixels.shape[1] != self.channels:
            raise ValueError(f"pixels should be (B, {self.channels}, H, W), not {tuple(pixels.shape)}")
        height, width = pixels.shape[2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"a picture of {height} x {width} pixels is not a multiple of the patch, {self.patch_size}"
            )
        return pixels

    def forward(self, stem: StemOutput, keep: Tensor | None = None) -> TokenSequence:
        tokens, mask = self.with_cls(stem)
        tokens = tokens + self.pos_embed(stem.grid)
        rows, columns = stem.grid
        buckets = grid_buckets(rows, columns, tokens.device)
        tables = [stretch_grid_table(table, self.bias_grid, rows, columns) for table in self.bias_tables()]
        return self.assemble(tokens, mask, stem, buckets, tables, keep)

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        if "features" in batch:
            count, rows, columns, _ = batch["features"].shape
            return torch.full((count,), rows * columns)
        count, _, height, width = batch["pixels"].shape
        rows = height // self.patch_size
        columns = width // self.patch_size
        return torch.full((count,), rows * columns)

    def token_positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """Row and column of each patch, (L, 2)."""
        height, width = batch["pixels"].shape[-2:]
        rows = height // self.patch_size
        columns = width // self.patch_size
        return torch.cartesian_prod(torch.arange(rows), torch.arange(columns)), "patch"

    @staticmethod
    def decoder_positions(dim: int, *, grid: int = 16, **_: Any) -> nn.Module:
        return GridPositions(dim, grid)
