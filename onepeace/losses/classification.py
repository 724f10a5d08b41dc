"""Losses over classes: one right answer, or any number of them."""

from torch import Tensor
from torch.nn import functional as F


def classification(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of one class per item.

    Args:
        logits: (B, C).
        target: (B,) int64 class ids, or (B, C) shares of the classes that sum to 1 (mixed pictures).
        label_smoothing: mass spread evenly over all C classes (torch's form, here the released code's too).

    Returns:
        Scalar mean over items, float32. The released code sums over items and divides the gradient by B: the same step.
    """
    if logits.ndim != 2 or target.shape not in (logits.shape[:1], logits.shape):
        shapes = f"logits {tuple(logits.shape)} and target {tuple(target.shape)}"
        raise ValueError(f"{shapes} should be (B, C) and (B,) or (B, C)")
    return F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing)


def multilabel(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of each class independently, for several answers or scored answers (VQA).

    Args:
        logits: (B, C).
        target: (B, C), from 0 to 1.

    Returns:
        Scalar: summed over classes as in the released code, mean over items, float32.
    """
    if logits.ndim != 2 or target.shape != logits.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} should both be (B, C)")
    return F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none").sum(1).mean()
