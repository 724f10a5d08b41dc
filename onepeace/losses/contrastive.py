"""Cross-modal contrastive loss (paper: cross-modal contrastive learning). Next file: denoising.py."""

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    groups: Tensor | None = None,
    label_smoothing: float = 0.0,
    detach_keys: bool = False,
) -> Tensor:
    """Symmetric InfoNCE: a row of ``a`` must find its pair in ``b`` among all rows of the batch, and the other way.

    Args:
        a, b: (B, E) unit vectors, row i of both belongs together.
        scale: factor on the cosines, the model's temperature.
        groups: (B,) int64; rows of equal group are positives of each other (equal captions, equal class), each with an
            equal share of the target. None: only the pair itself.
        label_smoothing: mass spread evenly over the B - 1 other rows (fairseq's form, as released).
        detach_keys: no gradient through the side that is searched (released code): half the gradient of the loss.

    Returns:
        Scalar mean over rows and both directions, float32.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must both be (B, E)")
    a, b = a.float(), b.float()
    count = len(a)
    if groups is None:
        target = torch.eye(count, device=a.device)
    else:
        same = (groups[:, None] == groups[None, :]).float()
        target = same / same.sum(1, keepdim=True)
    if label_smoothing:
        # (1 - e) on the target and e / (B - 1) on each of the others, for any number of positives.
        target = target * (1 - label_smoothing) + (1 - target) * label_smoothing / max(count - 1, 1)
    key_a, key_b = (a.detach(), b.detach()) if detach_keys else (a, b)
    forward = F.cross_entropy(scale * a @ key_b.T, target)
    backward = F.cross_entropy(scale * b @ key_a.T, target)
    return (forward + backward) / 2
