"""Figures of answers: which are reported, and how often their intervals hold the figure of other files."""

from types import SimpleNamespace

import numpy as np

from onepeace.evaluate.intervals import gain_of_groups
from onepeace.finetune.answers import AT, Answers, gains
from onepeace.finetune.report import _tables

NAMES = ["cat", "dog", "owl"]


def classified(right, predicted, confidence=None, candidates=3):
    return Answers(
        set="image by head",
        metric=f"top-{{k}} of {candidates}",
        at=AT,
        candidates=candidates,
        ranks=[1 + (label != prediction) for label, prediction in zip(right, predicted, strict=True)],
        right=[1] * len(right),
        groups=list(range(len(right))),
        names=[f"{number}.jpg" for number in range(len(right))],
        labels=right,
        predicted=predicted,
        confidence=confidence or [0.5] * len(right),
    )


def test_figures_that_cannot_move_are_left_out():
    answers_of_five = [classified(NAMES, NAMES, candidates=5)]
    (top_1,) = gains(answers_of_five, answers_of_five)
    assert top_1.metric == "top-1 of 5"
    answers_of_six = [classified(NAMES, NAMES, candidates=6)]
    top_1, top_5 = gains(answers_of_six, answers_of_six)
    assert top_1.metric == "top-1 of 6"
    assert top_5.metric == "top-5 of 6"


def test_recalls_of_a_search():
    search = Answers(
        set="image+text",
        metric="text to image R@{k}",
        at=AT,
        candidates=7,
        ranks=[1, 7, 3],
        right=[1, 1, 1],
        groups=[0, 0, 1],
        names=["a", "b", "c"],
    )
    first, fifth = gains([search], [search])
    assert first.metric == "text to image R@1"
    assert first.after.value == 1 / 3
    assert fifth.metric == "text to image R@5"
    assert fifth.after.value == 2 / 3


def test_intervals_of_few_answers_have_width_and_those_of_gains_are_paired():
    ones = np.ones(20)
    groups = np.arange(20)
    _, after, no_gain = gain_of_groups(ones, ones, groups)
    assert after.value == after.high == 1
    assert 0.7 < after.low < 0.95
    assert no_gain == (0, 0, 0)
    _, _, full_gain = gain_of_groups(0 * ones, ones, groups)
    assert full_gain.low > 0.5


def test_interval_holds_the_figure_of_other_files():
    """Files of a group are right or wrong together: with the groups as units the interval still holds."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    num_held = 0
    num_held_by_files = 0
    for _ in range(60):
        first = np.repeat(random.random(40) < 0.8, 5).astype(float)
        later = np.repeat(random.random(40) < 0.8, 5).astype(float)
        _, by_groups, _ = gain_of_groups(first, first, groups)
        _, by_files, _ = gain_of_groups(first, first, np.arange(200))
        num_held += by_groups.low <= later.mean() <= by_groups.high
        num_held_by_files += by_files.low <= later.mean() <= by_files.high
    assert num_held >= 54  # of 60, by intervals of 95 %
    assert num_held_by_files < 45  # intervals of single files are too narrow


def test_report_has_the_worst_classes_and_the_surest_errors_first():
    """The model often takes an owl for a dog. A class with one file has no interval."""
    right = ["cat", "cat", "dog", "owl", "owl", "owl"]
    predicted = ["dog", "cat", "dog", "dog", "owl", "dog"]
    after = classified(right, predicted, confidence=[0.6, 0.9, 0.9, 0.5, 0.7, 0.8])

    by_class, errors = _tables(SimpleNamespace(before=[classified(right, right)], after=[after]))

    _, owl, cat, dog = by_class.rows
    assert owl[:2] == ("owl", "3")
    assert owl[4].startswith("33.3% (")
    assert cat[0] == "cat"
    assert dog == ("dog", "1", "1", "100.0%", "100.0%", "+0.0%")
    assert errors.title.startswith("3 errors, the most confident first")
    assert errors.rows[1] == ("5.jpg", "owl", "dog", "80%")
    assert [file for file, *_ in errors.rows[2:]] == ["0.jpg", "3.jpg"]
