"""The encoder of one modality as a backbone: feature maps of selected blocks, for dense heads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from onepeace.layers.features import Features

if TYPE_CHECKING:
    from .model import OnePeace


class Backbone(nn.Module):
    """Backbone of one modality with the outputs of the blocks ``out_indices``; it shares the weights of the model.

    Args:
        model: may have other modalities, which are not used.
        key: the modality.
        out_indices: blocks, as in timm's forward_intermediates; -1 is the last.
        reshape: return maps (B, D, rows, columns) or (B, D, frames) instead of tokens (B, L, D), CLS first.
        norm: apply the modality's final norm to each output.
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
        """Returns one map per entry of ``out_indices``; padding is zero.

        Args:
            inputs: raw input of the modality, as its adapter takes it.
        """
        return [shaped(features, self.reshape) for features in self.forward_features(inputs)]

    def forward_features(self, inputs: dict[str, Tensor]) -> tuple[Features, ...]:
        """Returns tokens with their padding mask and grid, per entry of ``out_indices``."""
        stems = self.model.stems({self.key: inputs})
        found = self.model.encode(stems, out_indices=self.out_indices)[self.key].intermediates
        if not self.norm or self.model.norms is None:
            return found
        norm = self.model.norms[self.key]
        return tuple(features._replace(tokens=norm(features.tokens)) for features in found)


def shaped(features: Features, reshape: bool) -> Tensor:
    """Features in the form that `Backbone` returns, with zeros in padding."""
    if features.padding_mask is not None:
        tokens = features.tokens.masked_fill(features.padding_mask.unsqueeze(-1), 0.0)
        features = features._replace(tokens=tokens)
    return features.feature_map() if reshape else features.tokens
