"""Video: the frames of a clip -> one token per patch of each frame."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from onepeace.layers.features import Features

from ..sequence import Stem, TokenSequence
from .image import ImageAdapter


class VideoAdapter(ImageAdapter):
    """A clip as pictures at equal distances in time, each of which goes through the stem and positions of pictures.

    Batch: ``pixels`` (B, T, 3, H, W) float, normalised, T = ``frames``. Every row of its sequences is a frame, CLS
    first, with the learned embedding of its time added to all its tokens. An item's CLS is the mean of its frames'
    (released code: the head averages them). At first the time embeddings are zero, so that a clip of equal frames is
    the picture.

    Args:
        frames: T.
        patch_size, grid, bias_grid, stem, name, mean_cls, max_cls: as for pictures.
    """

    over_time = True

    def __init__(
        self,
        key: str,
        dim: int,
        num_heads: int,
        num_tables: int,
        *,
        frames: int = 16,
        patch_size: int = 16,
        grid: int = 16,
        bias_grid: int = 16,
        stem: str = "hmlp",
        name: str | None = None,
        mean_cls: bool = False,
        max_cls: bool = False,
    ):
        pictures = {"patch_size": patch_size, "grid": grid, "bias_grid": bias_grid, "stem": stem, "name": name}
        pictures |= {"mean_cls": mean_cls, "max_cls": max_cls}
        super().__init__(key, dim, num_heads, num_tables, **pictures)  # type: ignore[arg-type]
        self.time_embed = nn.Parameter(torch.empty(1, frames, dim))

    @property
    def frames(self) -> int:
        return self.time_embed.shape[1]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.time_embed)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"time_embed"}

    def stem_tokens(self, batch: dict[str, Tensor]) -> Stem:
        stem = super().stem_tokens(self._pictures(batch))
        return Stem(stem.tokens.unflatten(0, (-1, self.frames)).flatten(1, 2), None, (self.frames, *stem.grid))

    def stem_features(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, rows, columns, channels)."""
        return super().stem_features(self._pictures(batch)).unflatten(0, (-1, self.frames))

    def _pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch as pictures, (B * T, ...)."""
        for name, value in batch.items():
            if value.ndim != 5 or value.shape[1] != self.frames:
                raise ValueError(f"{name} of clips should be (B, {self.frames}, ...), not {tuple(value.shape)}")
        return {name: value.flatten(0, 1) for name, value in batch.items()}

    def forward(self, stem: Stem, keep: Tensor | None = None) -> TokenSequence:
        if keep is not None:
            raise ValueError("tokens of a clip cannot be left out")
        frames, *grid = stem.grid
        placed = super().forward(Stem(stem.tokens.unflatten(1, (frames, -1)).flatten(0, 1), None, tuple(grid)))
        tokens = placed.tokens.unflatten(0, (-1, frames)) + self.time_embed.unsqueeze(2)
        spans = tuple(span._replace(grid=stem.grid) for span in placed.spans)
        return replace(placed, tokens=tokens.flatten(0, 1), spans=spans)

    def item_features(self, features: Features) -> Features:
        """Rows of frames (B * T, 1 + rows * columns, D) -> rows of clips (B, 1 + T * rows * columns, D)."""
        tokens = features.tokens.unflatten(0, (-1, self.frames))
        tokens = torch.cat([tokens[:, :, 0].mean(1, keepdim=True), tokens[:, :, 1:].flatten(1, 2)], dim=1)
        return features._replace(tokens=tokens, intermediates=tuple(map(self.item_features, features.intermediates)))

    def token_lengths(self, batch: dict[str, Tensor]) -> Tensor:
        return super().token_lengths(self._pictures(batch)).unflatten(0, (-1, self.frames)).sum(1)

    def token_positions(self, batch: dict[str, Tensor]) -> tuple[Tensor, str]:
        """(L, 3) frame, row and column of each patch."""
        rows, columns = (side // self.patch_size for side in batch["pixels"].shape[-2:])
        sides = (torch.arange(side) for side in (self.frames, rows, columns))
        return torch.cartesian_prod(*sides), "patch"
