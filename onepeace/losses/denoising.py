"""Denoising contrastive loss (paper: intra-modal denoising contrastive learning). Next file: train/objective.py."""

from torch import Tensor
from torch.nn import functional as F


def denoising(
    student: Tensor,
    teacher: Tensor,
    masked: Tensor,
    padding_mask: Tensor | None = None,
    scale: float = 2.5,
    label_smoothing: float = 0.0,
) -> Tensor:
    """A hidden token must find its own teacher feature among those of all real tokens of the batch, hidden or not.

    Args:
        student, teacher: (B, L, D) without CLS: predictions for every position, and the features of the same input
            seen whole. The teacher is a target: no gradient flows into it.
        masked: (B, L) bool, True where the student did not see the token.
        padding_mask: (B, L) bool, True = padding: neither query nor candidate. None: nothing is.
        scale, label_smoothing: factor on the cosines; mass spread evenly over the wrong candidates.

    Returns:
        Scalar mean over the hidden tokens; 0, still attached to the graph, if nothing is hidden.
    """
    if student.shape != teacher.shape or masked.shape != student.shape[:2]:
        shapes = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and masked {tuple(masked.shape)}"
        raise ValueError(f"{shapes} must share (B, L), and the first two D")
    real = ~padding_mask if padding_mask is not None else masked.new_ones(masked.shape)
    queries = F.normalize(student[masked & real].float(), dim=-1)  # (M, D)
    keys = F.normalize(teacher.detach()[real].float(), dim=-1)  # (N, D)
    if len(queries) == 0:
        # One-word captions can leave a batch with nothing hidden; a mean over nothing is NaN, and a constant would
        # leave this process out of a backward pass that others wait in.
        return student.sum() * 0.0
    targets = masked[real].nonzero().squeeze(1)
    # torch smooths over all N candidates, the released code over the N - 1 wrong ones.
    smoothing = label_smoothing * len(keys) / max(len(keys) - 1, 1)
    return F.cross_entropy(scale * queries @ keys.T, targets, label_smoothing=smoothing)
