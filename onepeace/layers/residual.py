"""Residual branches."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Sum of tokens and the output of a branch."""

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch


class LayerScale(Residual):
    """Residual with a learned per-channel gain of the branch."""

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.initial = initial
        self.gain = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gain, self.initial)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return torch.addcmul(x, branch, self.gain)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a sample's branch with probability ``rate`` and scales the others up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)
