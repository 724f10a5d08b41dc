"""Evaluation figures from plain arrays: no model, no files.

Every function takes numpy arrays or tensors (on any device, in any float type) and returns numpy arrays or floats.

Ties always count against the model. The rank of a query is

    1 + the number of wrong candidates whose score is not below the best score of its correct candidates

so a model that gives every candidate the same score gets a recall of 0 and not of 1. A NaN score of a wrong candidate
counts as the highest, one of a correct candidate as the lowest.
"""

from collections.abc import Sequence
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
        each = np.asarray(values)
        return cls(metric, float(each.mean()), chance, len(each), tuple(each.tolist()), note)


def best_ranks(scores: Values, query_ids: Values, candidate_ids: Values) -> NDArray[np.int64]:
    """Rank of the best correct candidate of each query, (N,) integers from 1.

    scores (N, M): row = query; query_ids (N,), candidate_ids (M,): a candidate is correct when the ids are equal.
    A query without any correct candidate gets rank M + 1: a miss at every k.
    """
    scores, correct = _scores_and_correct(scores, query_ids, candidate_ids)
    best = np.where(correct & ~np.isnan(scores), scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    ranks = 1 + (~correct & ~(scores < best)).sum(axis=1)  # "not below": NaN among the wrong ones counts too
    return np.where(correct.any(axis=1), ranks, scores.shape[1] + 1)


def hits(ranks: Values, k: int) -> NDArray[np.int64]:
    """1 for each query with a correct candidate among the first k, else 0; k may exceed the candidates."""
    return (as_array(ranks) <= k).astype(np.int64)


def accuracies(ranks: Values, at: Sequence[int], classes: int) -> list[Figure]:
    """Top-k accuracy for each k of ``at``, given the rank of the right class of each item among all classes."""
    return [Figure.mean_of(f"top-{k} of {classes}", hits(ranks, k), min(1.0, k / classes)) for k in at]


def class_ranks(scores: Values, targets: Values) -> NDArray[np.int64]:
    """Rank of the right class of each item, (N,) integers from 1; scores are (N, C), targets (N,) class numbers."""
    targets, classes = as_array(targets), as_array(scores).shape[1]
    if targets.size and not (0 <= targets.min() and targets.max() < classes):
        raise ValueError(f"targets run from {targets.min()} to {targets.max()}, the scores have {classes} classes")
    return best_ranks(scores, targets, np.arange(classes))


def precisions_at(scores: Values, query_ids: Values, candidate_ids: Values, k: int) -> NDArray[np.float64]:
    """Share of correct candidates among the first k of each query (all of them when there are fewer), (N,).

    Arguments as in best_ranks. Among equal scores the wrong candidates come first.
    """
    scores, correct = _scores_and_correct(scores, query_ids, candidate_ids)
    order = np.lexsort((correct, -_without_nan(scores, correct)), axis=1)[:, :k]
    return np.take_along_axis(correct, order, axis=1).mean(axis=1)


def average_precisions(scores: Values, correct: Values) -> NDArray[np.float64]:
    """Average precision of each query, (N,): the mean precision at the ranks of its correct candidates; scores and 0/1
    `correct` are (N, M).

    Among equal scores the wrong candidates come first. A query without a correct candidate gets 0.
    """
    scores, correct = as_array(scores), as_array(correct) > 0
    if scores.shape != correct.shape:
        raise ValueError(f"scores {scores.shape} and correct {correct.shape} differ in shape")
    result = np.zeros(len(scores))
    for i, (row, right) in enumerate(zip(_without_nan(scores, correct), correct, strict=True)):
        found = np.sort(row[right])[::-1]
        if found.size:
            wrong = np.sort(row[~right & (row >= found[-1])])
            places = np.arange(1, found.size + 1)
            ranks = places + wrong.size - np.searchsorted(wrong, found)  # wrong ones that do not score lower
            result[i] = (places / ranks).mean()
    return result


def box_iou(boxes: Values, references: Values) -> NDArray[np.float64]:
    """Intersection over union of N pairs of boxes (x0, y0, x1, y1), (N,); 0 where they do not overlap in both axes."""
    a, b = as_array(boxes).astype(np.float64), as_array(references).astype(np.float64)
    if a.shape != b.shape or a.shape[-1:] != (4,):
        raise ValueError(f"boxes {a.shape} and references {b.shape} must both be (N, 4)")
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    overlap = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)


def chance_recall(query_ids: Values, candidate_ids: Values, k: int) -> float:
    """Expected recall at k of a random order of the M candidates: mean over queries of 1 - C(M-c, k)/C(M, k).

    c is the query's number of correct candidates.
    """
    ids, counts = np.unique(as_array(candidate_ids), return_counts=True)
    correct, total = dict(zip(ids.tolist(), counts.tolist(), strict=True)), int(counts.sum())
    k = min(k, total)
    numbers, queries = np.unique([correct.get(one, 0) for one in as_array(query_ids).tolist()], return_counts=True)
    misses = [comb(total - number, k) / comb(total, k) for number in numbers.tolist()]
    return 1 - float(np.average(misses, weights=queries))


def chance_average_precision(numbers: Values, total: int) -> float:
    """Expected mean of `average_precisions` for a random order of `total` candidates; numbers (N,) of correct ones.

    For c correct ones of M, it is (1/M) sum over the ranks r of (1 + (r-1)(c-1)/(M-1)) / r.
    """
    numbers = as_array(numbers)
    ranks = np.arange(1, total + 1)
    found = numbers[numbers > 0]
    others = (found - 1).mean() / max(total - 1, 1) if found.size else 0.0
    return float(found.size / numbers.size * ((1 + (ranks - 1) * others) / ranks).sum() / total)


def chance_precision(query_ids: Values, candidate_ids: Values) -> float:
    """Expected precision at any k of a random order: mean over queries of the share of correct candidates."""
    query_ids, candidate_ids = as_array(query_ids), as_array(candidate_ids)
    return float((query_ids[:, None] == candidate_ids[None, :]).mean())


def as_array(values: Values) -> NDArray:
    """Numpy view or copy of an array, a list or a tensor; bfloat16 and float16 become float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _without_nan(scores: NDArray, correct: NDArray[np.bool_]) -> NDArray:
    """Replace NaN by the lowest score for a correct candidate, and by the highest for a wrong one."""
    return np.where(np.isnan(scores), np.where(correct, -np.inf, np.inf), scores)


def _scores_and_correct(scores: Values, query_ids: Values, candidate_ids: Values) -> tuple[NDArray, NDArray[np.bool_]]:
    scores, query_ids, candidate_ids = as_array(scores), as_array(query_ids), as_array(candidate_ids)
    if scores.shape != (len(query_ids), len(candidate_ids)):
        raise ValueError(f"scores {scores.shape} for {len(query_ids)} queries and {len(candidate_ids)} candidates")
    return scores, query_ids[:, None] == candidate_ids[None, :]
