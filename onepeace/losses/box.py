"""Loss for locating a region of a picture (visual grounding)."""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-7
"""Added to areas that are divided by, as in torchvision."""


def box(logits: Tensor, target: Tensor) -> Tensor:
    """L1 distance of the corners, and generalised IoU (arXiv 1902.09630).

    The IoU term is the mean over predictions that are valid boxes (left < right, top < bottom), 0 if there are none
    (released code: NaN); the L1 term corrects the others.

    Args:
        logits: (B, 4); their sigmoids are x0, y0, x1, y1 relative to the picture.
        target: (B, 4) boxes, 0 to 1.

    Returns:
        Scalar: the L1 distance (summed over corners, mean over items) plus mean (1 - GIoU), float32.
    """
    if logits.shape != target.shape or logits.shape[1:] != (4,):
        raise ValueError(f"logits {tuple(logits.shape)} and target {tuple(target.shape)} should both be (B, 4)")
    predicted = logits.float().sigmoid()
    target = target.float()
    distance = F.l1_loss(predicted, target, reduction="none").sum(1).mean()
    is_valid = (predicted[:, :2] < predicted[:, 2:]).all(1)
    overlap_losses = (1 - generalized_iou(predicted, target)) * is_valid
    # Others count 0 and are not left out: the device alone knows how many there are.
    return distance + overlap_losses.sum() / is_valid.sum().clamp_min(1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (B,) of boxes (B, 4) with the corners x0, y0, x1, y1, each pair on its own.

    torchvision's loss of this name waits for the device, as it picks the pairs that overlap.
    """
    intersection = _area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    union = _area(a[:, :2], a[:, 2:]) + _area(b[:, :2], b[:, 2:]) - intersection
    hull = _area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    return intersection / (union + EPSILON) - (hull - union) / (hull + EPSILON)


def _area(corner: Tensor, opposite: Tensor) -> Tensor:
    """Areas (B,) of boxes from their corners (B, 2); 0 if they do not exist."""
    return (opposite - corner).clamp_min(0).prod(1)
