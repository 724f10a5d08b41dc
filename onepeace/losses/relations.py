"""Relational distillation (arXiv 1904.05068), of distributions over a batch; not part of the paper."""

import torch
from torch import Tensor
from torch.nn import functional as F


def relations(
    student: Tensor,
    teacher: Tensor,
    student_keys: Tensor,
    teacher_keys: Tensor,
    first: int = 0,
    student_scale: float = 10.0,
    teacher_scale: float = 10.0,
    count: float | None = None,
) -> Tensor:
    """Cross entropy of our similarities between items under the teacher's, an item's own left out.

    Args:
        student, teacher: (B, E) and (B, F) vectors of the same items, of any length; the teacher gets no gradient.
        student_keys, teacher_keys: (N, E) and (N, F), of the whole batch, targets too.
        first: the row of the keys where these items begin.
        student_scale, teacher_scale: factors on the cosines.
        count: what the sum over items is divided by. None: B.

    Returns:
        Scalar mean over the items, float32; 0, still attached to the graph, of none or of a batch of one.
    """
    if len(student) != len(teacher) or len(student_keys) != len(teacher_keys):
        sizes = f"{len(student)} and {len(teacher)}, their keys {len(student_keys)} and {len(teacher_keys)}"
        raise ValueError(f"student and teacher have {sizes} rows; they must be of the same items")
    with torch.autocast(student.device.type, enabled=False):
        own = torch.eye(len(student_keys), dtype=torch.bool, device=student.device)[first : first + len(student)]
        ours = student_scale * F.normalize(student.float(), dim=-1) @ F.normalize(student_keys.float(), dim=-1).T
        theirs = F.normalize(teacher.detach().float(), dim=-1) @ F.normalize(teacher_keys.float(), dim=-1).T
        target = (teacher_scale * theirs).masked_fill(own, -torch.inf).softmax(-1).nan_to_num()
        total = torch.sum(-target * F.log_softmax(ours.masked_fill(own, -1e4), dim=-1))
    return total / (max(len(student), 1) if count is None else count)
