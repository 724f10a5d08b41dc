"""Metrics of the results of heads, compared with plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.evaluate.metrics import average_precisions
from onepeace.evaluate.protocols.task_head import _consistency
from onepeace.evaluate.protocols.task_metrics import METRICS, Predictions

CLASSES = ("cat", "dog", "owl", "rain", "sea", "sun")
examples = settings(deadline=None, derandomize=True, max_examples=40)


def predictions(scores, targets):
    """As a head returns them: the classes of each sample, the best first."""
    results = []
    samples = []
    for number, row in enumerate(scores):
        entries = [{"label": label, "score": score} for label, score in zip(CLASSES, row, strict=True)]
        results.append({"labels": sorted(entries, key=lambda entry: -entry["score"])})
        samples.append(Sample(str(number), "val", {}, {"file": f"{number}.png"}))
    return Predictions(results, targets, CLASSES, samples)


rows = st.lists(st.sampled_from([0.1, 0.2, 0.5]), min_size=len(CLASSES), max_size=len(CLASSES))


@examples
@given(st.lists(st.tuples(rows, st.sampled_from(CLASSES)), min_size=1, max_size=5))
def test_rank_of_the_right_class_counts_equal_scores_against_the_head(cases):
    scores, targets = zip(*cases, strict=True)

    (ranking,) = METRICS["label"].figures(predictions(scores, targets))

    for number, (row, target) in enumerate(cases):
        by_class = dict(zip(CLASSES, row, strict=True))
        others = [score for label, score in by_class.items() if label != target]
        assert ranking.ranks[number] == 1 + sum(score >= by_class[target] for score in others)
        assert ranking.confidence[number] == by_class[ranking.predicted[number]] == max(row)
    assert ranking.labels == list(targets)
    assert ranking.names == [f"{number}.png" for number in range(len(cases))]
    assert len(set(ranking.groups)) == len(cases)
    top_1, top_5 = ranking.figures()
    assert (top_1.metric, top_5.metric) == ("top-1 of 6", "top-5 of 6")
    assert (top_1.chance, top_5.chance) == pytest.approx((1 / 6, 5 / 6))


def test_class_that_the_head_lacks_is_named():
    with pytest.raises(UserError, match="'bee' is not among the 6 labels"):
        METRICS["label"].figures(predictions([[0.1] * 6], ["bee"]))


@examples
@given(st.lists(st.tuples(rows, st.sets(st.sampled_from(CLASSES))), min_size=1, max_size=5))
def test_average_precision_is_over_the_classes_that_have_items(cases):
    scores, targets = zip(*cases, strict=True)
    if not any(targets):
        return

    (figure,) = METRICS["labels"].figures(predictions(scores, targets))

    expected = []
    for column, label in enumerate(CLASSES):
        is_right = [label in target for target in targets]
        if any(is_right):
            expected += average_precisions([[row[column] for row in scores]], [is_right]).tolist()
    assert figure.value == pytest.approx(np.mean(expected))
    assert figure.n == len(expected)


@examples
@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=8))
def test_group_is_consistent_if_all_of_it_is_right(cases):
    groups, right = zip(*cases, strict=True)

    figure = _consistency([float(value) for value in right], groups)

    names = sorted(set(groups))
    members = {name: [value for group, value in cases if group == name] for name in names}
    assert figure.value == pytest.approx(np.mean([all(values) for values in members.values()]))
    assert figure.chance == pytest.approx(np.mean([0.5 ** len(values) for values in members.values()]))
