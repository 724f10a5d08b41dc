"""Loss for locating a region of a picture (visual grounding)."""

import torch
from torch import Tensor
from torch.nn import functional as F


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
    from torchvision.ops import generalized_box_iou_loss

    predicted, target = logits.float().sigmoid(), target.float()
    distance = F.l1_loss(predicted, target, reduction="none").sum(1).mean()
    is_valid = (predicted[:, :2] < predicted[:, 2:]).all(1)
    # Others are replaced and multiplied by 0, not left out: the device alone knows how many there are.
    boxes = torch.where(is_valid[:, None], predicted, target)
    overlap_losses = generalized_box_iou_loss(boxes, target, reduction="none") * is_valid
    return distance + overlap_losses.sum() / is_valid.sum().clamp_min(1)
