"""Results of task heads: convert the raw output for one item to JSON-serialisable values.

``task`` in a head's configuration names an entry of TASKS; it is set by the objective term that trained the head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.5
"""Minimum probability of an event or a box."""
SHORTEST_GAP = 0.2
"""Pause in seconds below which two events of a class are merged."""


@dataclass(frozen=True)
class Context:
    """Facts about an item that its result needs in addition to the head's output."""

    labels: Sequence[str] = ()
    """Class names of the head; numbers where the model has none (released checkpoints)."""
    size: tuple[int, int] = (1, 1)
    """Width and height of the picture in pixels."""
    candidates: Sequence[str] = ()
    """The answers to choose from."""
    seconds_per_token: float = 0.0
    """Seconds between two tokens of a sound."""
    num_tokens: int = 0
    """Tokens of a sound, without padding."""
    top: int = 5
    """Number of classes in the result."""


def ranked(scores: Tensor, context: Context) -> list[dict[str, Any]]:
    """The best classes with their scores."""
    best_scores, numbers = scores.topk(min(context.top, len(scores)))
    classes = []
    for score, number in zip(best_scores.tolist(), numbers.tolist(), strict=True):
        classes.append({"label": context.labels[number], "score": score})
    return classes


def label(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, C) of mutually exclusive classes: probabilities that sum to 1."""
    return {"labels": ranked(output[0].softmax(0), context)}


def labels(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, C) of independent classes: a probability for each."""
    return {"labels": ranked(output[0].sigmoid(), context)}


def answer(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, C) of answers to a question."""
    answers = ranked(output[0].sigmoid(), context)
    return {"answer": answers[0]["label"], "score": answers[0]["score"], "answers": answers}


def box(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, 4) of a box: its corners [x0, y0, x1, y1] in pixels of the picture (released code)."""
    width, height = context.size
    corners = output[0].sigmoid() * torch.tensor([width, height, width, height])
    return {"box": corners.tolist()}


def boxes(output: Tensor, context: Context) -> dict[str, Any]:
    """Boxes (1, N, 6) of a detector, best first, as corners relative to the picture, score and class number: those with
    a score above 0, with corners in pixels of the picture."""
    width, height = context.size
    boxes_of_picture = []
    for x0, y0, x1, y1, score, number in output[0].tolist():
        if score > 0:
            corners = [x0 * width, y0 * height, x1 * width, y1 * height]
            boxes_of_picture.append({"label": context.labels[int(number)], "score": score, "box": corners})
    return {"boxes": boxes_of_picture}


def choice(output: Tensor, context: Context) -> dict[str, Any]:
    """Scores (N, 1) of N candidate answers."""
    scores = output[:, 0]
    best = int(scores.argmax())
    return {"choice": context.candidates[best], "number": best, "scores": scores.tolist()}


def events(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, L, C) of every frame: events with onset and offset in seconds, by onset."""
    probabilities = output[0, : context.num_tokens].sigmoid()
    gap = round(SHORTEST_GAP / context.seconds_per_token)
    events_of_sound = []
    for number in range(probabilities.shape[1]):
        heard = probabilities[:, number] >= THRESHOLD
        for first, last in _runs(heard, gap):
            events_of_sound.append(
                {
                    "label": context.labels[number],
                    "onset": first * context.seconds_per_token,
                    "offset": (last + 1) * context.seconds_per_token,
                    "score": probabilities[first : last + 1, number].mean().item(),
                }
            )
    return {"events": sorted(events_of_sound, key=lambda event: (event["onset"], event["label"]))}


def mask(output: Tensor, context: Context) -> dict[str, Any]:
    """Logits (1, C, h, w) on a grid: the class number of each pixel as a uint8 array, and each class's share."""
    width, height = context.size
    logits = F.interpolate(output, (height, width), mode="bilinear", align_corners=False)[0]
    classes = logits.argmax(0)
    counts = classes.flatten().bincount(minlength=output.shape[1]).tolist()
    shares = []
    for number, count in enumerate(counts):
        if count:
            shares.append({"label": context.labels[number], "share": count / (width * height)})
    shares.sort(key=lambda entry: -entry["share"])
    return {"labels": shares, "mask": classes.to(torch.uint8).numpy()}


def _runs(heard: Tensor, gap: int) -> list[tuple[int, int]]:
    """First and last frame of each run of True; runs less than ``gap`` frames apart are merged."""
    runs: list[tuple[int, int]] = []
    for frame in heard.nonzero().flatten().tolist():
        if runs and frame - runs[-1][1] - 1 < max(gap, 1):
            runs[-1] = (runs[-1][0], frame)
        else:
            runs.append((frame, frame))
    return runs


Task = Callable[[Tensor, Context], dict[str, Any]]
TASKS: Mapping[str, Task] = {
    "label": label,
    "labels": labels,
    "answer": answer,
    "box": box,
    "boxes": boxes,
    "choice": choice,
    "events": events,
    "mask": mask,
}
