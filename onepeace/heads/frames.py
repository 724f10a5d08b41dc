"""Head with logits for every token, e.g. for sound events."""

from dataclasses import dataclass

from torch import Tensor, nn

from onepeace.layers.features import Features

from .head import Head


@dataclass(frozen=True)
class FramesOptions:
    """Options of ``frames`` in ``ModelConfig.heads``."""

    num_classes: int


class Frames(Head):
    """A norm and a linear layer on each token."""

    Options = FramesOptions

    def __init__(self, dim: int, options: FramesOptions):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, options.num_classes)

    def forward(self, *passes: Features) -> Tensor:
        """Features of one pass -> logits (B, L, num_classes) of its tokens without CLS."""
        (features,) = passes
        return self.out(self.norm(features.tokens[:, 1:]))
