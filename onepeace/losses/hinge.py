"""Loss for choosing one of several answers by a score (AVQA)."""

from torch import Tensor


def hinge(scores: Tensor, target: Tensor) -> Tensor:
    """Hinge loss: every wrong answer must score at least 1 lower than the right one.

    The released code lets the right answer compete with itself, which adds 1 to the loss of each question and nothing
    to the gradient.

    Args:
        scores: (B, C), one for each candidate answer.
        target: (B,) int64, index of the right answer.

    Returns:
        Scalar: summed over wrong answers, mean over questions, float32.
    """
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(f"scores {tuple(scores.shape)} and target {tuple(target.shape)} should be (B, C) and (B,)")
    scores = scores.float()
    target = target.unsqueeze(1)
    shortfall = (1 + scores - scores.gather(1, target)).clamp_min(0)
    of_wrong_answers = shortfall.scatter(1, target, 0.0)
    return of_wrong_answers.sum(1).mean()
