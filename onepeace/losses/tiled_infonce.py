"""Cross entropy of cosine similarities, computed in tiles of rows, for both contrastive losses.

The full matrix of logits is never stored: each tile yields its loss and gradients at once, so memory is linear in the
batch and nothing is computed twice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onepeace.layers.precision import without_autocast

TILE = 2**22
"""Number of logits in memory at a time: 16 MB of float32."""
MIN_ROWS = 128
"""Minimum number of rows of a tile: with fewer, a product takes longer to read the keys than to compute."""


def tiled_infonce(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor | float,
    targets: Tensor,
    groups: Tensor | None = None,
    label_smoothing: float = 0.0,
    tile: int | None = None,
) -> Tensor:
    """Cross entropy of finding each query's key among all keys.

    Args:
        queries: (M, E) unit vectors.
        keys: (N, E) unit vectors; if detached, they get no gradient.
        scale: factor on the cosines.
        targets: (M,) int64, the row of each query's own key.
        groups: (N,) int64; keys of the same group as a query's own are positives too, with equal shares of the target.
        label_smoothing: mass spread evenly over the N - 1 other keys (fairseq's form, as released).
        tile: number of logits in memory at a time; it affects the result only by rounding. None: `TILE`, or those of
            `MIN_ROWS` queries if there are more than 32,768 keys.

    Returns:
        Scalar, the sum over queries, float32; it is computed in float32 under autocast too, as softmax and cosines near
        1 require.
    """
    if queries.ndim != 2 or keys.shape[1:] != queries.shape[1:] or targets.shape != queries.shape[:1]:
        shapes = f"queries {tuple(queries.shape)}, keys {tuple(keys.shape)} and targets {tuple(targets.shape)}"
        raise ValueError(f"{shapes} should be (M, E), (N, E) and (M,)")
    if groups is not None and groups.shape != keys.shape[:1]:
        raise ValueError(f"groups {tuple(groups.shape)} should be ({len(keys)},), one for each key")
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=torch.float32, device=queries.device)
    if tile is None:
        tile = max(TILE, MIN_ROWS * len(keys))
    with without_autocast(queries.device.type):
        return _Matching.apply(queries.float(), keys.float(), scale.float(), targets, groups, label_smoothing, tile)


class _Matching(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        targets: Tensor,
        groups: Tensor | None,
        smoothing: float,
        tile: int,
    ) -> Tensor:
        wants_queries, wants_keys, wants_scale = ctx.needs_input_grad[:3]
        wants_rows = wants_queries or wants_scale
        by_query = torch.empty_like(queries) if wants_rows else None
        by_key = torch.zeros_like(keys) if wants_keys else None
        by_scale = torch.zeros_like(scale)
        total = queries.new_zeros(())
        smoothing = smoothing if len(keys) > 1 else 0.0
        low = smoothing / max(len(keys) - 1, 1)  # target of a negative key
        rows = max(tile // max(len(keys), 1), 1)
        for start in range(0, len(queries), rows):
            part = queries[start : start + rows]
            part_targets = targets[start : start + rows, None]
            logits = part @ keys.T  # (rows, N)
            logits *= scale
            log_sum = logits.logsumexp(1, keepdim=True)
            total += log_sum.sum()
            if smoothing:
                total -= low * logits.sum()
            if groups is None:
                total -= (1 - smoothing - low) * logits.gather(1, part_targets).sum()
            else:
                positive = groups[part_targets] == groups  # (rows, N)
                share = positive / positive.sum(1, keepdim=True)
                # A key's target is (1 - e) * share + low * (1 - share); its constant ``low`` is subtracted separately.
                share = share * (1 - smoothing) - share * low
                total -= (share * logits).sum()
            if not (wants_rows or wants_keys):
                continue
            # d loss / d logits: softmax minus target.
            gradient = logits.sub_(log_sum).exp_()
            if smoothing:
                gradient -= low
            if groups is None:
                gradient.scatter_add_(
                    1,
                    part_targets,
                    part_targets.new_full(part_targets.shape, -(1 - smoothing - low), dtype=gradient.dtype),
                )
            else:
                gradient -= share
            if by_query is not None:
                rows_gradient = torch.mm(gradient, keys, out=by_query[start : start + rows])
                by_scale += (rows_gradient * part).sum()
            if by_key is not None:
                by_key.addmm_(gradient.T, part)
        ctx.save_for_backward(by_query, by_key, by_scale, scale)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_query, by_key, by_scale, scale = ctx.saved_tensors
        (grad,) = grads
        needs_grad = ctx.needs_input_grad
        factor = grad * scale
        return (
            by_query * factor if needs_grad[0] else None,
            by_key * factor if needs_grad[1] else None,
            by_scale * grad if needs_grad[2] else None,
            *[None] * 4,
        )
