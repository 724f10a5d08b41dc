"""Attention layers, and the choice of the attention kernel."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .precision import cast_once
from .recompute import RecomputedEnd


def use_math_attention(device_type: str, dtype: torch.dtype, length: int, trained_bias: bool = False) -> bool:
    """Whether plain matmul, softmax, matmul is faster than the fused kernel.

    Measured on AVX-512 CPUs: torch's fused CPU kernel takes 1.8-2.5 x the time of the plain form for bf16 up to about
    200 tokens and up to 2 x for float32 up to 64, but 0.35 x at 257 and more; with AMX, 0.5-0.9 x for bf16 from 26
    tokens on. It computes no gradient of the bias: if the bias is trained, torch falls back to its own plain float32
    form. On other devices the fused kernels are always faster.
    """
    if torch.compiler.is_compiling():  # one graph serves all lengths
        return False
    if not torch.backends.cuda.math_sdp_enabled():  # torch.nn.attention.sdpa_kernel chose another
        return False
    if dtype != torch.bfloat16:
        longest = 64
    else:
        longest = 20 if _has_amx() else 200
    return device_type == "cpu" and (trained_bias or length <= longest)


@cache
def _has_amx() -> bool:
    """Whether the CPU has AMX instructions for bfloat16 matrix products."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


HIDDEN = -1e4
"""Product of a query with each further component of a hidden key: after the softmax nothing is left of it. It is not
-inf, as kernels multiply keys by the zeros with which they fill blocks of queries."""
FURTHER = 8
"""Number of these components; the kernels of CUDA ask for a multiple."""


def hide_keys(q: Tensor, k: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with components that hide the keys ``hidden`` (B, L), and add exactly 0 to other logits.

    Beside a bias (1, H, L, L) of all items they take the place of one for each item, which would be as large as all
    logits.
    """
    of_keys = (hidden[:, None, :, None] * HIDDEN).to(k.dtype)
    of_keys = of_keys.expand(-1, k.shape[1], -1, FURTHER)
    return F.pad(q, (0, FURTHER), value=1.0), torch.cat([k, of_keys], dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax attention over (B, H, L, head_dim), with logits ``scale`` * q k + bias.

    ``bias`` (1 or B, H or 1, L, L) masks a key where it is -inf; every query must see at least one key. The softmax
    sums in float32 or higher precision for every dtype.
    """
    trained = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    if use_math_attention(q.device.type, q.dtype, q.shape[2], trained):
        scores = (q * scale) @ k.transpose(-2, -1)
        if bias is not None:
            scores += bias  # in place: the backward pass of the product does not need its output
        # The CPU kernel sums in float32 for every dtype; requesting a float32 result would only add two passes.
        return scores.softmax(dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


class SelfAttention(RecomputedEnd):
    """Multi-head self-attention with a LayerNorm before the output projection (sub-LN, as in Magneto).

    Keys have no bias (released code): it would shift all logits of a query equally.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None, hidden: Tensor | None = None) -> Tensor:
        """(B, L, D) -> (B, L, D); ``bias`` as in ``attention``, ``hidden`` as in ``hide_keys``."""
        batch, length = x.shape[:2]
        x = cast_once(x)

        def heads(t: Tensor) -> Tensor:
            return t.view(batch, length, self.num_heads, -1).transpose(1, 2)

        q = heads(self.q(x))
        k = heads(self.k(x))
        v = heads(self.v(x))
        if hidden is not None:
            q, k = hide_keys(q, k, hidden)
        # Under autocast q, k and v have half precision and the tables float32; the kernels need a single dtype.
        bias = None if bias is None else bias.to(q.dtype)
        return self.compute_end(self._mix, attention(q, k, v, bias, self.scale))

    def _mix(self, out: Tensor) -> Tensor:
        """(B, H, L, head_dim) -> (B, L, D)."""
        return self.proj(self.norm(out.transpose(1, 2).flatten(2)))


KeysValues = tuple[Tensor, Tensor]
"""Keys and values, (B, H, S, head_dim) each."""


class HeadScaledAttention(RecomputedEnd):
    """Multi-head self- or cross-attention with a learned gain per head (NormFormer).

    Its logits have half the usual variance, as the bias adds the other half (see `PositionBias`).
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.scale = (2 * dim // num_heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.gain = nn.Parameter(torch.empty(num_heads))
        self.proj = nn.Linear(dim, dim)

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> KeysValues:
        """Keys and values of tokens (B, S, D)."""
        x = cast_once(x)
        return self._heads(self.k(x)), self._heads(self.v(x))

    def forward(self, x: Tensor, keys_values: KeysValues, bias: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D); ``bias`` (1 or B, H, 1 or T, S) as in ``attention``."""
        q = self._heads(self.q(x))
        return self.compute_end(self._mix, attention(q, *keys_values, bias.to(q.dtype), self.scale))

    def _mix(self, out: Tensor) -> Tensor:
        """(B, H, T, head_dim) -> (B, T, D)."""
        return self.proj((out * self.gain[:, None, None]).transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """Attention pooling with one learned query per head (released code: attn_pooling_func; unscaled logits)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Parameter(torch.empty(num_heads, dim // num_heads))
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.q, std=0.02, a=-0.02, b=0.02)

    def forward(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, L, D) and a mask (B, L) -> (B, D)."""
        batch, length, dim = x.shape
        k = self.k(x).view(batch, length, self.num_heads, -1)
        v = self.v(x).view(batch, length, self.num_heads, -1)
        logits = torch.einsum("hd,blhd->bhl", self.q, k)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if padding_mask is not None:
            logits = logits.masked_fill(padding_mask[:, None], -torch.inf)
        pooled = torch.einsum("bhl,blhd->bhd", logits.softmax(-1).to(v.dtype), v)
        return self.proj(pooled.reshape(batch, dim))
