"""From the token features of one or more passes to logits."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.layers.attention import AttentionPool

if TYPE_CHECKING:
    from onepeace.model.encoder import Features


class Classifier(nn.Module):
    """Pool the tokens of one or more passes, then classify (released code: classify_head).

    Args:
        dim, num_heads: width of the features, heads of the attention pool.
        num_classes: outputs.
        pool: "attention" (over the tokens without CLS, then LayerNorm), "mean" (the same tokens, then LayerNorm) or
            "cls" (the CLS token, no norm).
        hidden_ratio: hidden width over the pooled width; 0 = one linear layer.
        pooler: a tanh layer between pool and classifier.
        inputs: passes pooled and concatenated.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_classes: int,
        pool: str = "attention",
        hidden_ratio: int = 2,
        pooler: bool = False,
        inputs: int = 1,
    ):
        super().__init__()
        if pool not in ("attention", "mean", "cls"):
            raise ValueError(f"no pool {pool!r}; known: attention, mean, cls")
        self.pool_by_cls = pool == "cls"
        self.pool = AttentionPool(dim, num_heads) if pool == "attention" else None
        self.norm = nn.Identity() if self.pool_by_cls else nn.LayerNorm(dim)
        self.pooler = nn.Linear(dim, dim) if pooler else None
        width, hidden = dim * inputs, dim * hidden_ratio
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.hidden_norm = nn.LayerNorm(hidden) if hidden else None
        self.out = nn.Linear(hidden or width, num_classes)

    def forward(self, *passes: "Features") -> Tensor:
        """Features of each pass -> logits (B, num_classes)."""
        x = torch.cat([self._pooled(features) for features in passes], dim=-1)
        if self.hidden is not None and self.hidden_norm is not None:
            x = F.gelu(self.hidden_norm(self.hidden(x)))
        return self.out(x)

    def _pooled(self, features: "Features") -> Tensor:
        mask = None if features.padding_mask is None else features.padding_mask[:, 1:]
        if self.pool_by_cls:
            x = features.cls
        elif self.pool is not None:
            x = self.pool(features.tokens[:, 1:], mask)
        elif mask is None:
            x = features.tokens[:, 1:].mean(1)
        else:
            x = features.tokens[:, 1:].masked_fill(mask.unsqueeze(-1), 0.0).sum(1) / (~mask).sum(1, keepdim=True)
        x = self.norm(x)
        return x if self.pooler is None else torch.tanh(self.pooler(x))
