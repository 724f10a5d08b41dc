"""Denoising contrastive loss (paper: intra-modal denoising contrastive learning)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .tiled_infonce import tiled_infonce


def masked_tokens(
    student: Tensor, teacher: Tensor, masked: Tensor, padding_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and targets of `denoising`, from one or more items.

    Args:
        student, teacher: (B, L, D) without CLS: predictions for every position, and the features of the same input
            without masks. The teacher is a target: no gradient flows into it.
        masked: (B, L) bool, True where the student did not see the token.
        padding_mask: (B, L) bool, True = padding, which is neither query nor candidate. None: no padding.

    Returns:
        (M, D) predictions of the M masked tokens, (N, D) teacher features of all N real tokens, and (M,) int64, the
        index of each masked token among them.
    """
    if student.shape != teacher.shape or masked.shape != student.shape[:2]:
        shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and masked {tuple(masked.shape)}"
        raise ValueError(f"{shapes} must share (B, L), and the first two D")
    real = torch.ones_like(masked) if padding_mask is None else ~padding_mask
    return student[masked & real], teacher.detach()[real], masked[real].nonzero().squeeze(1)


def denoising(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor,
    scale: float = 2.5,
    label_smoothing: float = 0.0,
    count: Tensor | float | None = None,
) -> Tensor:
    """A masked token must find its own teacher feature among those of all real tokens of the batch, masked or not.

    Args:
        queries, keys, targets: (M, D), (N, D) and (M,) from `masked_tokens`.
        scale, label_smoothing: factor on the cosines; mass spread evenly over the wrong candidates.
        count: divisor of the sum over queries; None: M.

    Returns:
        Scalar mean over the masked tokens, float32; 0, still attached to the graph, if nothing is masked (a batch of
        one-word captions): with a constant, this process would miss a backward pass that other processes wait for.
    """
    total = tiled_infonce(_unit(queries), _unit(keys.detach()), scale, targets, None, label_smoothing)
    return total / (max(len(queries), 1) if count is None else count)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
