"""Figures of answers (answers.py) before and after a fine-tuning, with intervals."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.evaluate.intervals import Estimate, gain_of_groups
from onepeace.finetune.answers import Answers

AT = (1, 5, 10)
"""The k of the accuracies and recalls."""


class Gain(NamedTuple):
    """A figure before and after the fine-tuning."""

    set: str
    metric: str
    before: Estimate
    after: Estimate
    gain: Estimate


def gains(before: Sequence[Answers], after: Sequence[Answers]) -> list[Gain]:
    """The metrics of every set, except those that are always 100 %, such as top-5 of five classes."""
    results = []
    for first, second in zip(before, after, strict=True):
        queries = np.arange(len(first.ranks))
        for k in AT:
            if k == 1 or k < first.candidates:
                gain = _gain(_metric(first, k), first, second, k=k, queries=queries)
                results.append(gain)
    return results


def _metric(answers: Answers, k: int) -> str:
    if answers.labels:
        return f"top-{k} of {answers.candidates}"
    return f"{answers.direction} R@{k}"


def by_class(before: Answers, after: Answers) -> list[tuple[int, Gain]]:
    """Number of files and accuracy of each class; the lowest accuracy after the fine-tuning first."""
    labels = np.array(before.labels)
    results = []
    for label in np.unique(labels):
        queries = np.flatnonzero(labels == label)
        gain = _gain(str(label), before, after, k=1, queries=queries)
        results.append((len(queries), gain))
    return sorted(results, key=lambda result: result[1].after.value)


def _gain(
    metric: str,
    before: Answers,
    after: Answers,
    k: int,
    queries: NDArray[np.int64],
) -> Gain:
    """The gain in the share of these queries whose rank is k or better."""
    estimates = gain_of_groups(
        np.array(before.ranks)[queries] <= k,
        np.array(after.ranks)[queries] <= k,
        np.array(before.groups)[queries],
    )
    return Gain(before.set, metric, *estimates)


def confusions(answers: Answers, most: int) -> tuple[list[str], NDArray[np.int64]]:
    """The ``most`` classes that are most often confused with others, and their confusion matrix (c, c): a row for each
    right class, a column for each predicted one."""
    counts = Counter(zip(answers.labels, answers.predicted, strict=True))
    errors = Counter[str]()
    for (right, predicted), count in counts.items():
        if right == predicted:
            errors.update({right: 0})
        else:
            errors.update({right: count, predicted: count})
    classes = sorted(label for label, _ in errors.most_common(most))
    matrix = [[counts[right, predicted] for predicted in classes] for right in classes]
    return classes, np.array(matrix)


def confident_errors(answers: Answers) -> list[int]:
    """Numbers of the queries with a wrong class, the most confident first."""
    pairs = enumerate(zip(answers.labels, answers.predicted, strict=True))
    wrong = [number for number, (right, predicted) in pairs if right != predicted]
    return sorted(wrong, key=lambda number: -answers.confidence[number])
