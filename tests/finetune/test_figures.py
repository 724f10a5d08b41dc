"""Figures of answers: what is told of them, and intervals that hold what they say."""

import numpy as np

from onepeace.data.sample import Sample
from onepeace.evaluate.intervals import gain_of_groups
from onepeace.finetune import answers
from onepeace.finetune.answers import Answers
from onepeace.finetune.figures import by_class, confident_errors, confusions, gains
from onepeace.finetune.groups import GROUP

NAMES = ["cat", "dog", "owl"]


def classified(right, predicted, confidence=None, candidates=3):
    return Answers(
        modalities="image+text",
        modality="image",
        set="image by head",
        direction="",
        candidates=candidates,
        ranks=[1 if a == b else 2 for a, b in zip(right, predicted, strict=True)],
        groups=list(range(len(right))),
        labels=right,
        predicted=predicted,
        confidence=confidence or [0.5] * len(right),
    )


def test_figures_that_cannot_move_are_left_out():
    right = NAMES * 4
    for candidates, metrics in ((5, ["top-1 of 5"]), (6, ["top-1 of 6", "top-5 of 6"])):
        found = classified(right, right, candidates=candidates)
        assert [one.metric for one in gains([found], [found])] == metrics
    found = Answers("image+text", "text", "image+text", "text to image", 7, [1, 7, 3], [0, 0, 1])
    assert [(one.metric, one.after.value) for one in gains([found], [found])] == [
        ("text to image R@1", 1 / 3), ("text to image R@5", 2 / 3),
    ]  # fmt: skip


def test_equal_captions_are_one_text_that_all_their_items_have(monkeypatch):
    captions = [["red"], ["red", "warm"], ["blue"], ["red"], ["green"], ["blue"]]
    samples = [Sample("", "", {"image": own[0], "text": own}, {GROUP: i // 2}) for i, own in enumerate(captions)]
    names = ["red", "blue", "green", "warm"]
    monkeypatch.setattr(answers, "samples_of", lambda *_: samples)
    monkeypatch.setattr(answers, "encode", lambda model, key, items: np.eye(4)[[names.index(item) for item in items]])
    texts, images = answers.answers(None, None, ["image+text"], [], {})
    assert (texts.candidates, images.candidates) == (6, 4)
    assert images.ranks == [1] * 6
    assert images.groups == [0, 0, 1, 1, 2, 2]
    assert texts.ranks == [1, 6, 1, 1]  # "warm" is a miss: nothing has its vector
    assert len(set(texts.groups)) == 1  # all groups share a text with another


def test_classes_errors_and_what_is_taken_for_what():
    right, said = ["cat", "cat", "dog", "owl", "owl", "owl"], ["dog", "cat", "dog", "dog", "owl", "dog"]
    after = classified(right, said, [0.6, 0.9, 0.9, 0.5, 0.7, 0.8])
    before = classified(right, right)
    assert [(n, one.metric, one.before.value, one.after.value) for n, one in by_class(before, after)] == [
        (3, "owl", 1, 1 / 3), (2, "cat", 1, 0.5), (1, "dog", 1, 1),
    ]  # fmt: skip
    classes, counts = confusions(after, 3)
    assert classes == NAMES
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 2, 1]]
    assert confusions(after, 2)[0] == ["dog", "owl"]
    assert confident_errors(after) == [5, 0, 3]


def test_an_interval_of_few_that_are_all_right_is_no_point_and_gains_have_their_own():
    ones, groups = np.ones(20), np.arange(20)
    _, after, gain = gain_of_groups(ones, ones, groups)
    assert after.value == after.high == 1
    assert 0.7 < after.low < 0.95
    assert gain == (0, 0, 0)
    assert gain_of_groups(0 * ones, ones, groups)[2].low > 0.5


def test_the_interval_holds_the_figure_of_other_files():
    """Files of a group are right or wrong together: with the groups as units the interval still holds."""
    random, held, by_files = np.random.default_rng(0), 0, 0
    for _ in range(60):
        first, later = (np.repeat(random.random(40) < 0.8, 5).astype(float) for _ in range(2))
        _, grouped, _ = gain_of_groups(first, first, np.repeat(np.arange(40), 5))
        _, files, _ = gain_of_groups(first, first, np.arange(200))
        held += grouped.low <= later.mean() <= grouped.high
        by_files += files.low <= later.mean() <= files.high
    assert held >= 54
    assert by_files < 45
