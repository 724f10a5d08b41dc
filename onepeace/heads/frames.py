"""Logits of every token, for what happens where in a sequence (sound events)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from onepeace.config import build
from onepeace.layers.features import Features

from .head import Head


@dataclass(frozen=True)
class FramesOptions:
    """Options of ``frames`` in ``ModelConfig.heads``."""

    num_classes: int


class Frames(Head):
    """A norm and a linear layer on each token."""

    def __init__(self, dim: int, options: FramesOptions):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, options.num_classes)

    @classmethod
    def from_options(cls, dim: int, num_heads: int, options: Mapping[str, Any], where: str) -> "Frames":
        return cls(dim, build(FramesOptions, options, where))

    def forward(self, *passes: Features) -> Tensor:
        """Features of one pass -> logits (B, L, num_classes) of its tokens without CLS."""
        (features,) = passes
        return self.out(self.norm(features.tokens[:, 1:]))
