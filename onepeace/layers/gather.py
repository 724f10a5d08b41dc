"""Selection of tokens and of batch rows."""

from collections.abc import Mapping, Sequence

from torch import Tensor


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Gather the tokens ``keep`` (B, K) of x (1 or B, L, D); ids of -1 (padding) select token 0."""
    index = keep.clamp_min(0).unsqueeze(-1).expand(-1, -1, x.shape[-1])
    return x.expand(keep.shape[0], -1, -1).gather(1, index)


def gather_pairs(buckets: Tensor, keep: Tensor) -> Tensor:
    """Gather rows and columns ``keep`` (B, K) of a bucket matrix (1, L, L): (B, K, K)."""
    ids = keep.clamp_min(0)
    return buckets[0][ids.unsqueeze(2), ids.unsqueeze(1)]


def take_rows(
    inputs: Mapping[str, Tensor], rows: Tensor, lengths: Sequence[int] | None = None, padded: str | None = None
) -> dict[str, Tensor]:
    """Select batch rows of a modality's raw input, and trim the input ``padded`` to the longest of them.

    Args:
        rows: (R,) int64, the numbers of the rows.
        lengths: (R,) the values of the input ``lengths`` for these rows, on the CPU. None: nothing is trimmed.
        padded: name of the input that ``lengths`` describes.
    """
    taken = {name: value[rows] for name, value in inputs.items()}
    if padded is not None and lengths is not None:
        longest = max(lengths)
        taken[padded] = taken[padded][:, :longest]
        if min(lengths) == longest:
            del taken["lengths"]
    return taken
