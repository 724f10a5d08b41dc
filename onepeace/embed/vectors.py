"""Vectors that a caller gives: checked, and scaled to length 1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.errors import UserError


def unit_rows(vectors: object, what: str, width: int | None = None) -> Tensor:
    """Vectors as unit rows (n, E), float32, on the CPU.

    Args:
        vectors: numbers (n, E) or (E,), as a tensor, an array or lists.
        what: their name in messages.
        width: the E that they must have; None = any.

    Raises:
        UserError: not numbers, another shape, or numbers that are not finite.
    """
    try:
        rows = torch.atleast_2d(torch.as_tensor(vectors).detach().float().cpu())
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{what} holds no numbers; encode it first: model.encode([...])") from error
    if rows.ndim != 2 or width not in (None, rows.shape[1]):
        raise UserError(f"{what} is {tuple(rows.shape)}; give vectors (n, {width or 'E'})")
    is_wrong = ~rows.isfinite().all(dim=1)
    if is_wrong.any():
        raise UserError(f"vector {int(is_wrong.int().argmax())} of {what} has numbers that are not finite")
    return F.normalize(rows, dim=1)
