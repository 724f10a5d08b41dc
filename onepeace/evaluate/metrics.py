"""Evaluation figures from plain arrays: no model, no files.

Every function takes numpy arrays or tensors (on any device, in any float type) and returns numpy arrays or floats.

Ties always count against the model. The rank of a query is

    1 + the number of wrong candidates whose score is not below the best score of its correct candidates

so a model that gives every candidate the same score gets a recall of 0 and not of 1. A NaN score of a wrong candidate
counts as the highest, one of a correct candidate as the lowest.
"""

from math import comb
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Values = ArrayLike | torch.Tensor


class Figure(NamedTuple):
    """One figure of an evaluation, with its chance level."""

    metric: str
    value: float
    chance: float
    n: int
    """Number of queries or items it is a mean over."""
    per_query: tuple[float, ...] = ()
    """The n values that the figure is the mean of; empty if it is not a mean, and then it has no interval."""
    note: str = ""
    """A remark, such as the chosen regularisation of a probe."""

    @classmethod
    def mean_of(cls, metric: str, values: ArrayLike, chance: float, note: str = "") -> "Figure":
        """Figure that is the mean of one value per query."""
        per_query = np.asarray(values)
        return cls(
            metric=metric,
            value=float(per_query.mean()),
            chance=chance,
            n=len(per_query),
            per_query=tuple(per_query.tolist()),
            note=note,
        )


def best_ranks(scores: Values, correct: Values) -> NDArray[np.int64]:
    """Rank of the best correct candidate of each query, (N,) integers from 1; scores and 0/1 `correct` are (N, M).

    A query without any correct candidate gets rank M + 1: a miss at every k.
    """
    scores, correct = _scores_and_correct(scores, correct)
    eligible = correct & ~np.isnan(scores)
    best = np.where(eligible, scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    not_below = ~(scores < best)  # NaN is not below
    ranks = 1 + (~correct & not_below).sum(axis=1)
    miss = scores.shape[1] + 1
    return np.where(correct.any(axis=1), ranks, miss)


def hits(ranks: Values, k: int) -> NDArray[np.int64]:
    """1 for each query with a correct candidate among the first k, else 0; k may exceed the candidates."""
    return (as_array(ranks) <= k).astype(np.int64)


def mean_reciprocal_rank(ranks: Values) -> float:
    """The mean of 1 / rank, which unlike a recall tells all ranks apart."""
    return float((1 / as_array(ranks)).mean())


def precisions_at(scores: Values, correct: Values, k: int) -> NDArray[np.float64]:
    """Share of correct candidates among the first k of each query (all of them when there are fewer), (N,); scores and
    0/1 `correct` are (N, M).

    Among equal scores the wrong candidates come first.
    """
    scores, correct = _scores_and_correct(scores, correct)
    order = np.lexsort((correct, -_without_nan(scores, correct)), axis=1)
    first_correct = np.take_along_axis(correct, order[:, :k], axis=1)
    return first_correct.mean(axis=1)


def average_precisions(scores: Values, correct: Values) -> NDArray[np.float64]:
    """Average precision of each query, (N,): the mean precision at the ranks of its correct candidates; scores and 0/1
    `correct` are (N, M).

    Among equal scores the wrong candidates come first. A query without a correct candidate gets 0.
    """
    scores, correct = _scores_and_correct(scores, correct)
    scores = _without_nan(scores, correct)
    precisions = np.zeros(len(scores))
    for query in range(len(scores)):
        precisions[query] = _average_precision(scores[query], correct[query])
    return precisions


def _average_precision(scores: NDArray, correct: NDArray[np.bool_]) -> float:
    """The average precision of one query; scores and correct are (M,)."""
    correct_scores = np.sort(scores[correct])[::-1]
    if not correct_scores.size:
        return 0.0
    lowest = correct_scores[-1]
    wrong_scores = np.sort(scores[~correct & (scores >= lowest)])
    num_correct = np.arange(1, correct_scores.size + 1)
    num_wrong = wrong_scores.size - np.searchsorted(wrong_scores, correct_scores)  # those that do not score lower
    return float((num_correct / (num_correct + num_wrong)).mean())


def box_iou(boxes: Values, references: Values) -> NDArray[np.float64]:
    """Intersection over union of N pairs of boxes (x0, y0, x1, y1), (N,); 0 where they do not overlap in both axes."""
    boxes = as_array(boxes).astype(np.float64)
    references = as_array(references).astype(np.float64)
    if boxes.shape != references.shape or boxes.shape[-1:] != (4,):
        raise ValueError(f"boxes {boxes.shape} and references {references.shape} must both be (N, 4)")
    begins = np.maximum(boxes[:, :2], references[:, :2])
    ends = np.minimum(boxes[:, 2:], references[:, 2:])
    overlap = (ends - begins).clip(min=0).prod(axis=1)
    union = _areas(boxes) + _areas(references) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def chance_recall(numbers: Values, total: int, k: int) -> float:
    """Expected recall at k of a random order of `total` candidates; numbers (N,) of correct ones of each query.

    For c correct ones of M, it is 1 - C(M-c, k) / C(M, k).
    """
    k = min(k, total)
    orders = comb(total, k)
    distinct, num_queries = np.unique(as_array(numbers), return_counts=True)
    recalls = [(orders - comb(total - number, k)) / orders for number in distinct.tolist()]
    return float(np.average(recalls, weights=num_queries))


def chance_average_precision(numbers: Values, total: int) -> float:
    """Expected mean of `average_precisions` for a random order of `total` candidates; numbers (N,) of correct ones.

    For c correct ones of M, it is (1/M) sum over the ranks r of (1 + (r-1)(c-1)/(M-1)) / r.
    """
    numbers = as_array(numbers)
    ranks = np.arange(1, total + 1)
    numbers_above_0 = numbers[numbers > 0]
    other_correct = 0.0
    if numbers_above_0.size:
        other_correct = (numbers_above_0 - 1).mean() / max(total - 1, 1)
    precisions = (1 + (ranks - 1) * other_correct) / ranks
    share_of_queries = numbers_above_0.size / numbers.size
    return float(share_of_queries * precisions.sum() / total)


def as_array(values: Values) -> NDArray:
    """Numpy view or copy of an array, a list or a tensor; bfloat16 and float16 become float32."""
    if isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
        values = tensor.numpy()
    array = np.asarray(values)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    return array


def _without_nan(scores: NDArray, correct: NDArray[np.bool_]) -> NDArray:
    """Replace NaN by the lowest score for a correct candidate, and by the highest for a wrong one."""
    replacements = np.where(correct, -np.inf, np.inf)
    return np.where(np.isnan(scores), replacements, scores)


def _scores_and_correct(scores: Values, correct: Values) -> tuple[NDArray, NDArray[np.bool_]]:
    scores = as_array(scores)
    correct = as_array(correct) > 0
    if scores.shape != correct.shape:
        raise ValueError(f"scores {scores.shape} and correct {correct.shape} differ in shape")
    return scores, correct
