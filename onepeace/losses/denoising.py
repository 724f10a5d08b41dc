"""Denoising contrastive loss (paper: intra-modal denoising contrastive learning)."""

from torch import Tensor
from torch.nn import functional as F

from .tiled_infonce import tiled_infonce


def masked_tokens(student: Tensor, teacher: Tensor, masked: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of `denoising`, from one or more items.

    Args:
        student, teacher: (B, L, D) without CLS: predictions for every position, and the features of the same input
            without masks. The teacher is a target: no gradient flows into it.
        masked: (M,) int64: the tokens that the student did not see, in the flattened (B, L).
        real: (N,) int64: the tokens that are not padding, in the flattened (B, L).

    Returns:
        (M, D) predictions of the masked tokens, and (N, D) teacher features of all real tokens.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be equal")
    return student.flatten(0, 1)[masked], teacher.detach().flatten(0, 1)[real]


def denoising(
    queries: Tensor,
    keys: Tensor,
    targets: Tensor,
    scale: float = 2.5,
    label_smoothing: float = 0.0,
    count: Tensor | float | None = None,
) -> Tensor:
    """A masked token must find its own teacher feature among those of all real tokens of the batch, masked or not.

    Args:
        queries, keys: (M, D) and (N, D) from `masked_tokens`.
        targets: (M,) int64, the index of each masked token among the real ones.
        scale, label_smoothing: factor on the cosines; mass spread evenly over the wrong candidates.
        count: divisor of the sum over queries; None: M.

    Returns:
        Scalar mean over the masked tokens, float32; 0, still attached to the graph, if nothing is masked (a batch of
        one-word captions): with a constant, this process would miss a backward pass that other processes wait for.
    """
    total = tiled_infonce(_unit(queries), _unit(keys.detach()), scale, targets, None, label_smoothing)
    if count is None:
        count = max(len(queries), 1)
    return total / count


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
