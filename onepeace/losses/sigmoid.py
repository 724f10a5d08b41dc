"""Sigmoid loss of pairs (SigLIP, arXiv 2303.15343), computed in tiles of rows: memory is linear in the batch."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from onepeace.layers.precision import without_autocast

from .tiled_infonce import MIN_ROWS, TILE


def sigmoid(
    a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, *, paired: bool = True, tile: int | None = None
) -> Tensor:
    """Each row of ``a`` and each of ``b`` is a question by itself: do they belong together?

    Args:
        a: (M, E) unit vectors.
        b: (N, E) unit vectors; row i belongs to row i of ``a`` if they are ``paired``, or to none of them.
        scale, bias: of the logits, ``scale`` * cosine + ``bias``, as there is one right pair among very many.
        tile: number of logits in memory at a time; it affects the result only by rounding.

    Returns:
        Scalar: the sum over ``b``, the mean over the rows of ``a`` (open_clip's form), float32, in which it is computed
        under autocast too.
    """
    if a.ndim != 2 or a.shape[1:] != b.shape[1:] or (paired and len(a) != len(b)):
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} should be (M, E) and (N, E), M = N if paired")
    if tile is None:
        tile = max(TILE, MIN_ROWS * len(b))
    with without_autocast(a.device.type):
        total = _Deciding.apply(a.float(), b.float(), scale.float(), bias.float(), paired, tile)
    return total / max(len(a), 1)


class _Deciding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, bias: Tensor, paired: bool, tile: int) -> Tensor:
        total = a.new_zeros(())
        by_a = torch.empty_like(a)
        by_b = torch.zeros_like(b)
        by_scale = torch.zeros_like(scale)
        by_bias = torch.zeros_like(bias)
        rows = max(tile // max(len(b), 1), 1)
        for start in range(0, len(a), rows):
            part = a[start : start + rows]
            logits = (part @ b.T).mul_(scale).add_(bias)
            total += F.softplus(logits).sum()
            if paired:  # log sigmoid(x) = x - softplus(x)
                total -= logits.diagonal(start).sum()
            gradient = logits.sigmoid_()  # d loss / d logits: the probability minus the answer
            if paired:
                gradient.diagonal(start).sub_(1)
            torch.mm(gradient, b, out=by_a[start : start + rows])
            by_b.addmm_(gradient.T, part)
            by_scale += (by_a[start : start + rows] * part).sum()
            by_bias += gradient.sum()
        ctx.save_for_backward(by_a, by_b, by_scale, by_bias, scale)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_a, by_b, by_scale, by_bias, scale = ctx.saved_tensors
        (grad,) = grads
        factor = grad * scale
        return by_a * factor, by_b * factor, by_scale * grad, by_bias * grad, None, None
