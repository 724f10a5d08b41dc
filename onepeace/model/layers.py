"""Small parts of a block. Next file: block.py."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype for sums and norms of ``dtype`` values: halves are too coarse for them."""
    return torch.promote_types(dtype, torch.float32)


def cast_once(x: Tensor) -> Tensor:
    """``x`` as autocast would hand it to matrix products, so that several of them share one copy."""
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def keeping_inputs(function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """``function(*inputs)``, of which training keeps the inputs only and makes the rest again in the backward pass.

    For cheap operations that end in one matrix product: the product is not repeated, for all it keeps is its input, and
    with the last thing that is kept torch stops ("early stop"). It saves a quarter of a step's activations (base size).
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler chooses for itself
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, determinism_check="none")


def without_autocast(kind: str) -> AbstractContextManager[Any]:
    """Within it, dtypes are as written; also on devices that know no autocast, such as meta."""
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


class GEGLU(nn.Module):
    """Gated feed-forward layer with a LayerNorm in it (sub-LN): down(norm(GELU(gate x) * up x))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.norm = nn.LayerNorm(hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        x = cast_once(x)
        return keeping_inputs(self._narrow, self.gate(x), self.up(x))

    def _narrow(self, gate: Tensor, up: Tensor) -> Tensor:
        return self.down(self.norm(F.gelu(gate) * up))


class LayerScale(nn.Module):
    """A learned gain per channel."""

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.initial = initial
        self.gain = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gain, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class DropPath(nn.Module):
    """Stochastic depth: in training a sample's whole branch is dropped with chance ``rate``, the rest scaled up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept / (1 - self.rate)).to(x.dtype)


class AttentionPool(nn.Module):
    """One learned query per head over the tokens (released code: attn_pooling_func; its logits are not scaled)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        self.k, self.v, self.proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.q, std=0.02, a=-0.02, b=0.02)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, L, D) and a mask (B, L) -> (B, D)."""
        batch, length, dim = x.shape
        k = self.k(x).view(batch, length, self.num_heads, -1)
        v = self.v(x).view(batch, length, self.num_heads, -1)
        logits = torch.einsum("hd,blhd->bhl", self.q, k)
        logits = logits.to(at_least_float32(logits.dtype))
        if padding_mask is not None:
            logits = logits.masked_fill(padding_mask[:, None], -torch.inf)
        pooled = torch.einsum("bhl,blhd->bhd", logits.softmax(-1).to(v.dtype), v)
        return self.proj(pooled.reshape(batch, dim))
