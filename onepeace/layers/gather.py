"""Some tokens, or rows, of many."""

from collections.abc import Mapping

from torch import Tensor


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Rows ``keep`` (B, K) of x (1 or B, L, D); ids of -1 (padding) give row 0."""
    index = keep.clamp_min(0).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.expand(keep.shape[0], -1, -1).gather(1, index)


def gather_pairs(buckets: Tensor, keep: Tensor) -> Tensor:
    """Rows and columns ``keep`` (B, K) of a bucket matrix (1, L, L): (B, K, K)."""
    ids = keep.clamp_min(0)
    return buckets[0][ids.unsqueeze(2), ids.unsqueeze(1)]


def take_rows(inputs: Mapping[str, Tensor], rows: Tensor, padded: str | None = None) -> dict[str, Tensor]:
    """Rows of a modality's raw input; of the one that is ``padded`` without the padding that none of them needs."""
    taken = {name: value[rows] for name, value in inputs.items()}
    if padded is not None and "lengths" in taken:
        longest = int(taken["lengths"].amax())
        taken[padded] = taken[padded][:, :longest]
        if int(taken["lengths"].amin()) == longest:
            del taken["lengths"]
    return taken
