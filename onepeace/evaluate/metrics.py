"""Evaluation figures from plain arrays: no model, no files.

Every function takes numpy arrays or tensors (on any device, in any float type) and returns numpy arrays or floats.

One rule for ties, everywhere: they count against the model. The rank of a query is

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

from onepeace.errors import need

Values = ArrayLike | torch.Tensor


class Figure(NamedTuple):
    """One figure of an evaluation, with what guessing would reach."""

    metric: str
    value: float
    chance: float
    n: int
    """Number of queries or items it is a mean over."""


def best_ranks(scores: Values, query_ids: Values, candidate_ids: Values) -> NDArray[np.int64]:
    """Rank of the best correct candidate of each query, (N,) integers from 1.

    scores (N, M): row = query; query_ids (N,), candidate_ids (M,): a candidate is correct when the ids are equal.
    A query without any correct candidate gets rank M + 1: a miss at every k.
    """
    scores, correct = _scores_and_correct(scores, query_ids, candidate_ids)
    best = np.where(correct & ~np.isnan(scores), scores, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    ranks = 1 + (~correct & ~(scores < best)).sum(axis=1)  # "not below": NaN among the wrong ones counts too
    return np.where(correct.any(axis=1), ranks, scores.shape[1] + 1)


def recall_at(ranks: Values, at: Sequence[int]) -> dict[int, float]:
    """Share of queries with a correct candidate among the first k, {k: value in 0..1}; k may exceed the candidates."""
    ranks = as_array(ranks)
    if ranks.size == 0:
        raise ValueError("recall needs at least one query, got 0 ranks")
    return {k: float((ranks <= k).mean()) for k in at}


def accuracy_at(scores: Values, targets: Values, at: Sequence[int]) -> dict[int, float]:
    """Top-k accuracy {k: value in 0..1} of scores (N, C) against class numbers targets (N,)."""
    targets, classes = as_array(targets), as_array(scores).shape[1]
    if targets.size and not (0 <= targets.min() and targets.max() < classes):
        raise ValueError(f"targets run from {targets.min()} to {targets.max()}, the scores have {classes} classes")
    return recall_at(best_ranks(scores, targets, np.arange(classes)), at)


def precision_at(scores: Values, query_ids: Values, candidate_ids: Values, k: int) -> float:
    """Mean over the queries of the share of correct candidates among the first k (all of them when there are fewer).

    Arguments as in best_ranks. Among equal scores the wrong candidates come first.
    """
    scores, correct = _scores_and_correct(scores, query_ids, candidate_ids)
    scores = np.where(np.isnan(scores), np.where(correct, -np.inf, np.inf), scores)
    order = np.lexsort((correct, -scores), axis=1)[:, :k]
    return float(np.take_along_axis(correct, order, axis=1).mean())


def mean_average_precision(scores: Values, targets: Values) -> float:
    """Unweighted mean over classes of the average precision of scikit-learn; scores and 0/1 targets are (N, C).

    Classes without a positive item have no average precision and are left out of the mean.
    """
    average_precision_score = need("sklearn.metrics", "eval").average_precision_score
    scores, targets = as_array(scores), as_array(targets) > 0
    if scores.shape != targets.shape:
        raise ValueError(f"scores {scores.shape} and targets {targets.shape} differ in shape")
    present = np.flatnonzero(targets.any(axis=0))
    if present.size == 0:
        raise ValueError("no class has a positive item")
    return float(np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in present]))


def box_iou(boxes: Values, references: Values) -> NDArray[np.float64]:
    """Intersection over union of N pairs of boxes (x0, y0, x1, y1), (N,); 0 where they do not overlap in both axes."""
    a, b = as_array(boxes).astype(np.float64), as_array(references).astype(np.float64)
    if a.shape != b.shape or a.shape[-1:] != (4,):
        raise ValueError(f"boxes {a.shape} and references {b.shape} must both be (N, 4)")
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    overlap = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    union = (a[:, 2:] - a[:, :2]).prod(axis=1) + (b[:, 2:] - b[:, :2]).prod(axis=1) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)


def box_accuracy(boxes: Values, references: Values, threshold: float = 0.5) -> float:
    """Share of pairs of boxes (N, 4) whose IoU reaches the threshold."""
    return float((box_iou(boxes, references) >= threshold).mean())


def chance_recall(query_ids: Values, candidate_ids: Values, k: int) -> float:
    """Recall at k that a random order of the M candidates has on average: mean over queries of 1 - C(M-c, k)/C(M, k).

    c is the query's number of correct candidates; with M classes and c = 1 this is the chance level of top-k accuracy.
    """
    ids, counts = np.unique(as_array(candidate_ids), return_counts=True)
    correct = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    total = int(counts.sum())
    k = min(k, total)
    misses = [comb(total - correct.get(query, 0), k) / comb(total, k) for query in as_array(query_ids).tolist()]
    return 1 - float(np.mean(misses))


def chance_precision(query_ids: Values, candidate_ids: Values) -> float:
    """Precision at any k that a random order has on average: mean over queries of the share of correct candidates."""
    query_ids, candidate_ids = as_array(query_ids), as_array(candidate_ids)
    return float((query_ids[:, None] == candidate_ids[None, :]).mean())


def as_array(values: Values) -> NDArray:
    """Numpy view or copy of an array, a list or a tensor; bfloat16 and float16 become float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _scores_and_correct(scores: Values, query_ids: Values, candidate_ids: Values) -> tuple[NDArray, NDArray[np.bool_]]:
    scores, query_ids, candidate_ids = as_array(scores), as_array(query_ids), as_array(candidate_ids)
    if scores.shape != (len(query_ids), len(candidate_ids)):
        raise ValueError(f"scores {scores.shape} for {len(query_ids)} queries and {len(candidate_ids)} candidates")
    return scores, query_ids[:, None] == candidate_ids[None, :]
