"""Accuracy of answers to questions, with the answers of ten annotators."""

import pytest

from onepeace.data.sample import Sample
from onepeace.evaluate.protocols.task_metrics import METRICS, Predictions


@pytest.mark.parametrize(
    ("num_agreeing", "expected"),
    [
        (0, 0.0),
        (2, 0.6),
        (4, 1.0),
    ],
)
def test_accuracy_is_that_of_the_vqa_challenge(num_agreeing, expected):
    annotations = ["Two."] * num_agreeing + ["three"] * (10 - num_agreeing)
    sample = Sample(key="0", source="val", inputs={}, targets={"annotations": annotations})
    predictions = Predictions(results=[{"answer": "2"}], targets=[{}], labels=["2", "3"], samples=[sample])

    (figure,) = METRICS["answer"].figures(predictions)

    assert figure.value == pytest.approx(expected)
