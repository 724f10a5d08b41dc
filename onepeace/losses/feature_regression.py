"""Predicting a network's features of hidden tokens, as MVP (arXiv 2203.05175) and EVA (2211.07636) do."""

import torch
from torch import Tensor
from torch.nn import functional as F


def feature_regression(predictions: Tensor, targets: Tensor, count: float | None = None) -> Tensor:
    """Cosine distance.

    Args:
        predictions: (M, C).
        targets: (M, C); no gradient flows into them.
        count: what the sum over tokens is divided by. None: M.

    Returns:
        Scalar mean over the tokens, float32; 0, still attached to the graph, of no tokens.
    """
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions {tuple(predictions.shape)} and targets {tuple(targets.shape)} must be equal")
    cosines = F.cosine_similarity(predictions.float(), targets.detach().float(), dim=-1)
    return torch.sum(1 - cosines) / (max(len(predictions), 1) if count is None else count)
