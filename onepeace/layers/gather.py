"""Some tokens of many."""

from torch import Tensor


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Rows ``keep`` (B, K) of x (1 or B, L, D); ids of -1 (padding) give row 0."""
    index = keep.clamp_min(0).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.expand(keep.shape[0], -1, -1).gather(1, index)


def gather_pairs(buckets: Tensor, keep: Tensor) -> Tensor:
    """Rows and columns ``keep`` (B, K) of a bucket matrix (1, L, L): (B, K, K)."""
    ids = keep.clamp_min(0)
    return buckets[0][ids.unsqueeze(2), ids.unsqueeze(1)]
