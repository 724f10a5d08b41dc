"""Results of task heads: raw numbers of a head become what a user reads."""

import pytest
import torch

from onepeace.embed.tasks import Context, events

YES = 5.0
NO = -5.0


def intervals(frames: str, seconds_per_token: float) -> list[tuple[float, float]]:
    """Onset and offset of the events of one class; "#" is a frame in which it is heard."""
    logits = torch.tensor([YES if frame == "#" else NO for frame in frames]).reshape(1, -1, 1)
    context = Context(labels=("dog",), seconds_per_token=seconds_per_token, num_tokens=len(frames))
    return [(event["onset"], event["offset"]) for event in events(logits, context)["events"]]


@pytest.mark.parametrize(
    ("frames", "seconds_per_token", "expected"),
    [
        ("##..##", 0.1, [(0.0, 0.2), (0.4, 0.6)]),
        ("##.##.", 0.1, [(0.0, 0.5)]),
        ("##.##.", 1.0, [(0.0, 2.0), (3.0, 5.0)]),
        ("......", 1.0, []),
    ],
    ids=["pause of 0.2 s", "pause of 0.1 s", "pause of one long frame", "silence"],
)
def test_events_are_merged_across_short_pauses(frames, seconds_per_token, expected):
    assert intervals(frames, seconds_per_token) == [pytest.approx(interval) for interval in expected]


def test_events_of_padding_are_left_out():
    logits = torch.full((1, 4, 1), YES)
    context = Context(labels=("dog",), seconds_per_token=1.0, num_tokens=2)

    (event,) = events(logits, context)["events"]

    assert (event["onset"], event["offset"]) == (0.0, 2.0)
