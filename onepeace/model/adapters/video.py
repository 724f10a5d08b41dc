"""Video: the frames of a clip -> one token per patch of each frame."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from onepeace.config.reader import Count
from onepeace.layers.features import Features

from ..sequence import StemOutput, TokenSequence
from .base import AdapterOptions
from .image import ImageAdapter


class VideoAdapter(ImageAdapter):
    """Adapter for clips: frames at equal time steps, each encoded with the stem and positions of images.

    Batch: ``pixels`` (B, T, 3, H, W) float, normalised, T = ``frames``. Every row of a sequence is a frame, CLS
    first, and a learned time embedding is added to all its tokens. An item's CLS is the mean over its frames (released
    code: the head averages them). The time embeddings start at zero, so that a clip of identical frames equals the
    image.

    Args:
        frames: T.
        patch_size, grid, bias_grid, stem, name: as for images.
    """

    over_time = True

    def __init__(
        self,
        options: AdapterOptions,
        *,
        frames: Count = 16,
        patch_size: Count = 16,
        grid: Count = 16,
        bias_grid: Count = 16,
        stem: str = "hmlp",
        name: str | None = None,
    ):
        super().__init__(options, patch_size=patch_size, grid=grid, bias_grid=bias_grid, stem=stem, name=name)
        self.time_embed = nn.Parameter(torch.empty(1, frames, options.dim))

    @property
    def frames(self) -> int:
        return self.time_embed.shape[1]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.time_embed)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"time_embed"}

    def stem_tokens(self, batch: dict[str, Tensor]) -> StemOutput:
        stem = super().stem_tokens(self._pictures(batch))
        tokens = stem.tokens.unflatten(0, (-1, self.frames)).flatten(1, 2)
        return StemOutput(tokens, padding_mask=None, grid=(self.frames, *stem.grid))

    def stem_features(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, rows, columns, channels)."""
        return super().stem_features(self._pictures(batch)).unflatten(0, (-1, self.frames))

    def _pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as images, (B * T, ...)."""
        for name, value in batch.items():
            if value.ndim != 5 or value.shape[1] != self.frames:
                raise ValueError(f"{name} of clips should be (B, {self.frames}, ...), not {tuple(value.shape)}")
        return {name: value.flatten(0, 1) for name, value in batch.items()}

    def forward(self, stem: StemOutput, keep: Tensor | None = None) -> TokenSequence:
        if keep is not None:
            raise ValueError("tokens of a clip cannot be masked; leave out keep")
        frames, *grid = stem.grid
        frame_tokens = stem.tokens.unflatten(1, (frames, -1)).flatten(0, 1)
        sequence = super().forward(StemOutput(frame_tokens, padding_mask=None, grid=tuple(grid)))
        tokens = sequence.tokens.unflatten(0, (-1, frames)) + self.time_embed.unsqueeze(2)
        spans = tuple(span._replace(grid=stem.grid) for span in sequence.spans)
        return replace(sequence, tokens=tokens.flatten(0, 1), spans=spans)

    def item_features(self, features: Features, pooled: Tensor | None = None) -> Features:
        """Convert frame rows (B * T, 1 + rows * columns, D) to clip rows (B, 1 + T * rows * columns, D)."""
        tokens = features.tokens.unflatten(0, (-1, self.frames))
        cls = tokens[:, :, 0].mean(1, keepdim=True)
        patches = tokens[:, :, 1:].flatten(1, 2)
        intermediates = tuple(map(self.item_features, features.intermediates))
        return features._replace(tokens=torch.cat([cls, patches], dim=1), intermediates=intermediates)

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        return super().token_lengths(self._pictures(batch)).unflatten(0, (-1, self.frames)).sum(1)

    def token_positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """Frame, row and column of each patch, (L, 3)."""
        height, width = batch["pixels"].shape[-2:]
        rows = torch.arange(height // self.patch_size)
        columns = torch.arange(width // self.patch_size)
        return torch.cartesian_prod(torch.arange(self.frames), rows, columns), "patch"
