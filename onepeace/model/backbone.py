"""The encoder of one modality as a backbone: feature maps of chosen blocks, for dense heads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from onepeace.layers.features import Features

if TYPE_CHECKING:
    from .model import OnePeace


class Backbone(nn.Module):
    """What the blocks ``out_indices`` make of one modality; weights are those of the model.

    Args:
        model: it may have other modalities, which are not used.
        key: the modality.
        out_indices: blocks, as in timm's forward_intermediates; -1 is the last.
        reshape: maps on their grid, (B, D, rows, columns) or (B, D, frames), in place of tokens (B, L, D), CLS first.
        norm: apply the modality's final norm to each.
    """

    def __init__(
        self, model: "OnePeace", key: str, out_indices: Sequence[int] = (-1,), reshape: bool = True, norm: bool = True
    ):
        super().__init__()
        if key not in model.adapters:
            raise ValueError(f"no modality {key!r}; the model has {', '.join(model.adapters)}")
        self.model, self.key, self.out_indices = model, key, model.block_numbers(out_indices)
        self.reshape, self.norm = reshape, norm

    @property
    def channels(self) -> list[int]:
        """Width D of each map."""
        return [self.model.config.dim] * len(self.out_indices)

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """A map for each of ``out_indices``; padding is zero.

        Args:
            inputs: raw input of the modality, as its adapter takes it.
        """
        return [self._shaped(features) for features in self.forward_features(inputs)]

    def forward_features(self, inputs: dict[str, Tensor]) -> tuple[Features, ...]:
        """Tokens with their padding mask and grid, for each of ``out_indices``."""
        stems = self.model.stems({self.key: inputs})
        found = self.model.encode(stems, out_indices=self.out_indices)[self.key].intermediates
        if not self.norm or self.model.norms is None:
            return found
        norm = self.model.norms[self.key]
        return tuple(features._replace(tokens=norm(features.tokens)) for features in found)

    def _shaped(self, features: Features) -> Tensor:
        if features.padding_mask is not None:
            tokens = features.tokens.masked_fill(features.padding_mask.unsqueeze(-1), 0.0)
            features = features._replace(tokens=tokens)
        return features.feature_map() if self.reshape else features.tokens


class Pyramid(nn.Module):
    """Maps of four strides from the one of a plain Transformer: a quarter, half, once and twice its own (ViTDet, arXiv
    2203.16527, section 3), each reduced to ``out_dim`` channels. Strides are 4, 8, 16 and 32 for patches of 16 pixels.

    Args:
        dim: channels of the map.
        out_dim: channels of the pyramid.
    """

    def __init__(self, dim: int, out_dim: int = 256):
        super().__init__()
        half, quarter = dim // 2, dim // 4
        up = nn.ConvTranspose2d(dim, half, 2, 2)
        twice = nn.ConvTranspose2d(half, quarter, 2, 2)
        scales: list[tuple[nn.Module, int]] = [
            (nn.Sequential(up, LayerNorm2d(half), nn.GELU(), twice), quarter),
            (nn.ConvTranspose2d(dim, half, 2, 2), half),
            (nn.Identity(), dim),
            (nn.MaxPool2d(2), dim),
        ]
        self.levels = nn.ModuleList(
            nn.Sequential(
                scale,
                nn.Conv2d(width, out_dim, 1, bias=False),
                LayerNorm2d(out_dim),
                nn.Conv2d(out_dim, out_dim, 3, padding=1, bias=False),
                LayerNorm2d(out_dim),
            )
            for scale, width in scales
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, D, rows, columns) -> (B, out_dim, ...) with 4, 2, 1 and 1/2 times the rows and columns."""
        return [level(x) for level in self.levels]


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of each place: (B, C, rows, columns)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
