"""Classifier head: token features of one or more passes to logits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config import build
from onepeace.config.reader import Count, Natural
from onepeace.layers.attention import AttentionPool
from onepeace.layers.features import Features

from .head import Head


@dataclass(frozen=True)
class ClassifierOptions:
    """Options of a ``classifier`` in ``ModelConfig.heads``."""

    num_classes: Count
    pool: Literal["attention", "mean", "cls"] = "attention"
    """"attention": a learned query over the tokens without CLS; "mean": their mean; "cls": the CLS token, no norm."""
    num_heads: Count | None = None
    """Number of heads of the attention pool; the encoder's by default."""
    hidden_ratio: Natural = 2
    """Ratio of the hidden layer's width to the width of the features; 0 = no hidden layer."""
    pooler: bool = False
    """Whether there is a tanh layer between pool and classifier (VQA)."""
    inputs: Count = 1
    """Number of passes that are pooled and concatenated (NLVR2: 2)."""


class Classifier(Head):
    """Pool the tokens of one or more passes, then classify (released code: classify_head)."""

    Options = ClassifierOptions

    def __init__(self, dim: int, num_heads: int, options: ClassifierOptions):
        super().__init__()
        self.options = options
        self.pool = AttentionPool(dim, options.num_heads or num_heads) if options.pool == "attention" else None
        self.norm = nn.Identity() if options.pool == "cls" else nn.LayerNorm(dim)
        self.pooler = nn.Linear(dim, dim) if options.pooler else None
        self.hidden: nn.Linear | None = None
        self.hidden_norm: nn.LayerNorm | None = None
        out_width = dim * options.inputs
        if options.hidden_ratio:
            hidden_width = dim * options.hidden_ratio
            self.hidden = nn.Linear(out_width, hidden_width)
            self.hidden_norm = nn.LayerNorm(hidden_width)
            out_width = hidden_width
        self.out = nn.Linear(out_width, options.num_classes)

    @classmethod
    def from_options(cls, dim: int, num_heads: int, options: Mapping[str, Any], where: str) -> "Classifier":
        return cls(dim, num_heads, build(cls.Options, options, where))

    def forward(self, *passes: Features) -> Tensor:
        """Features of each pass -> logits (B, num_classes)."""
        x = torch.cat([self._pooled(features) for features in passes], dim=-1)
        if self.hidden is not None and self.hidden_norm is not None:
            x = F.gelu(self.hidden_norm(self.hidden(x)))
        return self.out(x)

    def _pooled(self, features: Features) -> Tensor:
        """One vector of each item: (B, D)."""
        tokens = features.tokens[:, 1:]
        padding_mask = features.padding_mask
        if padding_mask is not None:
            padding_mask = padding_mask[:, 1:]
        if self.options.pool == "cls":
            x = features.cls
        elif self.pool is not None:
            x = self.pool(tokens, padding_mask)
        else:
            x = _mean(tokens, padding_mask)
        x = self.norm(x)
        if self.pooler is not None:
            x = torch.tanh(self.pooler(x))
        return x


def _mean(tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean (B, D) of the tokens (B, L, D) that are not padding; the mask is (B, L)."""
    if padding_mask is None:
        return tokens.mean(1)
    total = tokens.masked_fill(padding_mask.unsqueeze(-1), 0.0).sum(1)
    num_tokens = (~padding_mask).sum(1, keepdim=True)
    return total / num_tokens
