"""Events in sounds: their loss, and what a user reads."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.recipe_files import recipe_file
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.testing import assert_close

from onepeace.embed.predict import Context
from onepeace.train.terms.heads import SupervisedOptions

frame_events = recipe_file("frame_events")
Events = frame_events.Events

SECONDS_PER_FRAME = 0.5
LABELS = ("dog", "cat")


@pytest.fixture
def model():
    head = {"on": "audio", "labels": LABELS}
    return SimpleNamespace(
        config=SimpleNamespace(heads={"classifier": head}),
        adapters={"audio": SimpleNamespace(seconds_per_token=SECONDS_PER_FRAME)},
    )


def test_loss_is_the_mean_over_items_of_the_mean_over_frames(model):
    batch = SimpleNamespace(
        keys=["long", "short"],
        lengths={"audio": np.array([4 + 1, 1 + 1])},  # frames, and CLS
        targets={"events": [[[0.0, 1.0, "dog"], [1.0, 1.5, "cat"]], []]},
    )
    is_heard = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    logits = torch.randn(5, 2)

    term = Events(SupervisedOptions(term="events"), model)
    (loss,) = term.loss(logits, batch, model).values()

    of_frames = binary_cross_entropy_with_logits(logits, is_heard, reduction="none").sum(1)
    assert_close(loss, (of_frames[:4].mean() + of_frames[4]) / 2)


@pytest.mark.parametrize(
    ("events", "heard"),
    [
        ([[0.55, 0.6, "cat"]], [1]),  # shorter than a frame: the nearest
        ([[4.0, 5.0, "cat"], [1.5, 1.6, "dog"]], []),  # after the part that is decoded
    ],
)
def test_frames_in_which_an_event_is_heard(model, events, heard):
    batch = SimpleNamespace(keys=["a"], lengths={"audio": np.array([3 + 1])}, targets={"events": [events]})
    sure_and_right = torch.full((3, 2), -20.0)
    sure_and_right[heard, LABELS.index("cat")] = 20.0

    term = Events(SupervisedOptions(term="events"), model)
    (loss,) = term.loss(sure_and_right, batch, model).values()

    assert loss.item() < 1e-6


# Results

YES = 5.0
NO = -5.0


def intervals(frames: str, seconds_per_token: float) -> list[tuple[float, float]]:
    """Onset and offset of the events of one class; "#" is a frame in which it is heard, "x" one of padding."""
    logits = torch.tensor([NO if frame == "." else YES for frame in frames]).reshape(1, -1, 1)
    context = Context(("dog",), seconds_per_token=seconds_per_token, num_tokens=len(frames.rstrip("x")))
    return [(event["onset"], event["offset"]) for event in frame_events.events(logits, context)["events"]]


@pytest.mark.parametrize(
    ("frames", "seconds_per_token", "expected"),
    [
        ("##..##", 0.1, [(0.0, 0.2), (0.4, 0.6)]),
        ("##.##.", 0.1, [(0.0, 0.5)]),
        ("##.##.", 1.0, [(0.0, 2.0), (3.0, 5.0)]),
        ("......", 1.0, []),
        ("##xx", 1.0, [(0.0, 2.0)]),
    ],
    ids=["pause of 0.2 s", "pause of 0.1 s", "pause of one long frame", "silence", "padding"],
)
def test_events_are_merged_across_short_pauses(frames, seconds_per_token, expected):
    assert intervals(frames, seconds_per_token) == [pytest.approx(interval) for interval in expected]
