"""Bottleneck layers added to a pretrained network."""

from torch import Tensor, nn
from torch.nn import functional as F


class ZeroLinear(nn.Linear):
    """Linear layer initialised to zero, so that the branch that ends with it is initially a no-op."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Bottleneck(nn.Module):
    """Bottleneck of two Linear layers, up(GELU(down x)), initially zero (AIM, arXiv 2302.03024)."""

    def __init__(self, dim: int, ratio: float = 0.25):
        super().__init__()
        hidden = int(dim * ratio)
        self.down = nn.Linear(dim, hidden)
        self.up = ZeroLinear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.up(F.gelu(self.down(x)))
