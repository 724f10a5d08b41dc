"""Cross entropy of similarities to a set of texts under another classifier's probabilities; not part of the paper."""

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.layers.precision import without_autocast


def soft_targets(
    items: Tensor, texts: Tensor, targets: Tensor, scale: Tensor | float, count: float | None = None
) -> Tensor:
    """Cross entropy of the items' similarities to the texts under ``targets``.

    Args:
        items: (B, E) unit vectors.
        texts: (K, E) unit vectors.
        targets: (B, K) probabilities; rows may sum to less than 1, which lowers their weight.
        scale: factor on the cosines.
        count: divisor of the sum over items. None: B.

    Returns:
        Scalar mean over the items, float32; 0, still attached to the graph, if there are no items.
    """
    if targets.shape != (len(items), len(texts)):
        raise ValueError(f"targets {tuple(targets.shape)} should be {(len(items), len(texts))}")
    with without_autocast(items.device.type):
        logits = scale * items.float() @ texts.float().T
        total = torch.sum(-targets.float() * F.log_softmax(logits, dim=-1))
    if count is None:
        count = max(len(items), 1)
    return total / count
