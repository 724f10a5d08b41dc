"""Distillation of a teacher's features: an optional term for small data, not part of the paper."""

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.layers.precision import without_autocast


def distillation(
    student: Tensor, teacher: Tensor, scale: float = 10.0, keys: Tensor | None = None, count: float | None = None
) -> Tensor:
    """Cosine distance, plus a cross entropy of similarities within the batch.

    The target of the second term is the distribution of the teacher's similarities among its own vectors; the
    prediction is that of the student's similarities to the same vectors.

    Args:
        student: (B, F), the student's features mapped to the teacher's width.
        teacher: (B, F), the teacher's features of the same items; a target, no gradient flows into it.
        scale: factor on the cosines of the second term.
        keys: (N, F), the teacher's features of the whole batch if ``teacher`` is a part of it. None: ``teacher``.
        count: divisor of the sum over items. None: B.

    Returns:
        Scalar mean over the items, float32; 0, still attached to the graph, if there are no items.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must be equal")
    student = F.normalize(student.float(), dim=-1)
    teacher = F.normalize(teacher.detach().float(), dim=-1)
    keys = teacher if keys is None else F.normalize(keys.detach().float(), dim=-1)
    with without_autocast(student.device.type):
        target = (scale * teacher @ keys.T).softmax(dim=-1)
        log_probs = F.log_softmax(scale * student @ keys.T, dim=-1)
        cross_entropy = torch.sum(-target * log_probs, dim=-1)
        distance = 1 - (student * teacher).sum(-1)
        total = (distance + cross_entropy).sum()
    if count is None:
        count = max(len(student), 1)
    return total / count
