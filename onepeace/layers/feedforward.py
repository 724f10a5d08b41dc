"""Feed-forward layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .precision import cast_once
from .recompute import RecomputedEnd


class GEGLU(RecomputedEnd):
    """Gated feed-forward layer with an inner LayerNorm (sub-LN): down(norm(GELU(gate x) * up x))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        x = cast_once(x)
        return self.compute_end(self._narrow, self.gate(x), self.up(x))

    def _narrow(self, gate: Tensor, up: Tensor) -> Tensor:
        hidden = F.gelu(gate)
        # On a CPU, allocating memory takes longer than the product.
        hidden = hidden * up if torch.is_grad_enabled() else hidden.mul_(up)
        return self.down(self.norm(hidden))


class FeedForward(RecomputedEnd):
    """Feed-forward layer with an inner LayerNorm (NormFormer): down(norm(GELU(up x)))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.compute_end(self._narrow, self.up(x))

    def _narrow(self, up: Tensor) -> Tensor:
        return self.down(self.norm(F.gelu(up)))
