"""Cross-modal contrastive loss (paper: cross-modal contrastive learning)."""

import torch
from torch import Tensor

from .tiled_infonce import tiled_infonce


def contrastive(
    a: Tensor,
    b: Tensor,
    scale: Tensor | float,
    groups: Tensor | None = None,
    label_smoothing: float = 0.0,
    detach_keys: bool = False,
    keys: tuple[Tensor, Tensor] | None = None,
    first: int = 0,
) -> Tensor:
    """Symmetric InfoNCE: each row of ``a`` must find its pair among all rows of ``b``, and vice versa.

    Args:
        a, b: (B, E) unit vectors, row i of one is the positive of row i of the other.
        scale: factor on the cosines, the model's temperature.
        groups: (N,) int64, one for each row of the keys; rows of a group are positives of each other (same caption
            or class), each with an equal share of the target. None: only the pair itself.
        label_smoothing: mass spread evenly over the N - 1 other rows (fairseq's form, as released).
        detach_keys: whether keys have no gradient (released code), which halves the gradient of the loss.
        keys: (N, E) each, ``a`` and ``b`` of all processes, with gradient unless ``detach_keys``. None: a and b.
        first: row of ``keys`` at which the rows of this process begin.

    Returns:
        Scalar mean over the rows of ``a`` and both directions, float32. The mean over processes of equal B is the loss
        of the whole batch.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} must both be (B, E)")
    key_a, key_b = (a, b) if keys is None else keys
    if detach_keys:
        key_a = key_a.detach()
        key_b = key_b.detach()
    targets = torch.arange(first, first + len(a), device=a.device)
    forward = tiled_infonce(a, key_b, scale, targets, groups, label_smoothing)
    backward = tiled_infonce(b, key_a, scale, targets, groups, label_smoothing)
    return (forward + backward) / (2 * max(len(a), 1))
