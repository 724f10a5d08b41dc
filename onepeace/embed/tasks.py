"""Results of task heads: convert the raw output for one item to JSON-serialisable values.

``task`` in a head's configuration names an entry of TASKS; it is set by the objective term that trained the head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from onepeace.files.drawing import with_box

if TYPE_CHECKING:
    from PIL import Image


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


def choice(output: Tensor, context: Context) -> dict[str, Any]:
    """Scores (N, 1) of N candidate answers."""
    scores = output[:, 0]
    best = int(scores.argmax())
    return {"choice": context.candidates[best], "number": best, "scores": scores.tolist()}


@dataclass(frozen=True)
class Task:
    """Meaning of a head's output for one item, and how it is shown."""

    result: Callable[[Tensor, Context], dict[str, Any]]
    """The output as JSON-serialisable values; a "mask" may be an array."""
    cell: Callable[[Mapping[str, Any]], str]
    """The result as a cell of a table."""
    column: str = "label"
    """Title of the table's column."""
    draw: "Callable[[Image.Image, Mapping[str, Any], str, Sequence[str]], Image.Image] | None" = None
    """The picture with the result drawn over it, given the text of the item and the labels of the head."""


def labels_cell(result: Mapping[str, Any]) -> str:
    """Labels with their scores."""
    return ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in result["labels"])


def _answer_cell(result: Mapping[str, Any]) -> str:
    return f"{result['answer']} {result['score']:.2f}"


def _box_cell(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{corner:.0f}" for corner in result["box"])


def _choice_cell(result: Mapping[str, Any]) -> str:
    return str(result["choice"])


def _with_box(picture: "Image.Image", result: Mapping[str, Any], text: str, labels: Sequence[str]) -> "Image.Image":
    return with_box(picture, result["box"], text)


TASKS: dict[str, Task] = {
    "label": Task(label, labels_cell),
    "labels": Task(labels, labels_cell),
    "answer": Task(answer, _answer_cell, column="answer"),
    "box": Task(box, _box_cell, column="box", draw=_with_box),
    "choice": Task(choice, _choice_cell, column="answer"),
}
