"""`onepeace bench loss`: the losses in tiles against all their logits at once, forward and backward.

Losses and gradients of both are compared before anything is measured. Memory is what is alive beside the inputs at the
peak: the gradients, and all there is on the way to them.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.bench.comparison import check_equal, compare, compared
from onepeace.losses import contrastive, denoising

log = logging.getLogger(__name__)

CLOSE = 1e-5
"""Relative, between losses and between gradients of both, as norms."""
LOGIT_SCALE = 14.0
SCALE, SMOOTHING = 2.5, 0.1
"""Of the denoising loss, as in the recipes."""
MASKED = 0.5
"""Of the tokens, in the denoising loss."""


def both_ways(
    kind: str, size: int, dim: int, device: torch.device
) -> tuple[dict[str, Callable[[], Any]], list[Tensor]]:
    """One loss of one size: functions that give the loss and its gradients by name, and the tensors they have."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, dim, generator=generator).to(device) for _ in range(2))
    if kind == "contrastive":
        # Pairs that are hard to find: of easy ones the loss is close to 0, and nothing to compare by.
        scale = torch.tensor(LOGIT_SCALE, device=device)
        inputs, targets = [F.normalize(a, dim=1), F.normalize(a + 4 * b, dim=1), scale], []
        losses: list[Callable[..., Tensor]] = [contrastive, full_contrastive]
    else:
        places = torch.arange(0, size, round(1 / MASKED), device=device)
        inputs, targets = [a[places] + b[places]], [b, places]
        smoothed: dict[str, Any] = {"scale": SCALE, "label_smoothing": SMOOTHING}
        losses = [partial(denoising, **smoothed), partial(full_denoising, **smoothed)]
    for tensor in inputs:
        tensor.requires_grad_()

    def run(loss_of: Callable[..., Tensor]) -> dict[str, Tensor]:
        loss = loss_of(*inputs, *targets)
        gradients = torch.autograd.grad(loss, inputs)
        return {"itself": loss.detach(), **{f"by {i}": gradient for i, gradient in enumerate(gradients)}}

    return dict(zip(("ours", "baseline"), (partial(run, loss) for loss in losses), strict=True)), [*inputs, *targets]


def full_contrastive(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Both directions over one whole matrix of logits."""
    logits = scale * a @ b.T
    targets = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def full_denoising(queries: Tensor, keys: Tensor, targets: Tensor, scale: float, label_smoothing: float) -> Tensor:
    """Smoothed as released: the mass of the wrong ones is shared by the others."""
    logp = (scale * F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).T).log_softmax(1)
    each = label_smoothing / (len(keys) - 1)
    own = logp.gather(1, targets[:, None])[:, 0]
    return (-(1 - label_smoothing - each) * own - each * logp.sum(1)).mean()


def bench_loss(
    kinds: Sequence[str], sizes: Sequence[int], dim: int, device: torch.device, seconds: float
) -> Iterator[dict[str, Any]]:
    """A row for "contrastive" or "denoising" and each number of pairs or tokens, measured for so many seconds."""
    for kind in kinds:
        for size in sizes:
            log.info("%s, %d ...", kind, size)
            ways, known = both_ways(kind, size, dim, device)
            check_equal(ways["ours"](), ways["baseline"](), CLOSE, "the loss or its gradient,")
            yield {"loss": kind, "size": size, "dim": dim, **compare(ways, known, seconds, device)}


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for people; the baseline has all logits at once."""
    items = "pairs" if row["loss"] == "contrastive" else f"tokens, {MASKED:.0%} masked"
    return {"loss": f"{row['loss']}, dim {row['dim']}", "size": f"{row['size']} {items}", **compared(row)}
