"""Typed answers of a generative model: a text, a box, a choice, or boxes with labels.

Every answer has a `score`, by which the search ranks it, and a `confidence` between 0 and 1. For answers found by
search, the confidence is the geometric mean of the probabilities of the answer's tokens, without those of a prefix, and
with eos only if it was not forced. For a choice, it is the probability of this answer among the choices.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isfinite
from typing import TypeAlias

from onepeace.errors import UserError
from onepeace.generative.search import Hypothesis
from onepeace.generative.tasks import Task
from onepeace.generative.vocabulary import Vocabulary

PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Text:
    """A text; its string is marked if the model is unsure."""

    text: str
    score: float
    confidence: float
    agreement: float | None = None
    """Cosine of text and item, both embedded by the model, if the task uses it."""
    is_sure: bool = True
    """Whether the cosine reaches the task's threshold (``unsure_below``); False for digital silence."""

    def __str__(self) -> str:
        return self.text if self.is_sure else f"unsure ({self.text})"


@dataclass(frozen=True)
class Box:
    """Bounding box of an object."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the original picture, within it."""
    score: float
    confidence: float

    def __str__(self) -> str:
        return ", ".join(f"{corner:.0f}" for corner in self.box)


@dataclass(frozen=True)
class Choice:
    """One of several answers."""

    choice: str
    score: float
    """Log-probability."""
    confidence: float
    """Probability among the choices."""
    scores: dict[str, float]
    """Log-probability of every choice."""

    def __str__(self) -> str:
        return self.choice


@dataclass(frozen=True)
class Objects:
    """Objects that were found, with their boxes."""

    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]
    """Label and box (as in `Box`) of each object, in the order of the answer."""
    score: float
    confidence: float


Answer: TypeAlias = Text | Box | Choice | Objects


def read_answer(
    found: Hypothesis,
    task: Task,
    vocabulary: Vocabulary,
    *,
    prefix: int = 0,
    size: tuple[int, int] = (1, 1),
    resized: tuple[int, int] = (1, 1),
) -> Answer:
    """Convert the tokens of a hypothesis to an answer.

    Args:
        prefix: number of tokens in front of the answer.
        size, resized: width and height of the original picture, and of the one that the model reads.
    """
    ids, counted = found.tokens[prefix:-1], found.token_scores[prefix:]
    if ids and len(ids) == task.search.max_len:  # eos was forced
        counted = counted[:-1]
    confidence = exp(sum(counted) / len(counted))

    def box(four: Sequence[int]) -> tuple[float, float, float, float]:
        corners = vocabulary.box_of(four, size, resized)
        (x0, x1), (y0, y1) = (
            sorted(min(max(corner, 0.0), float(side)) for corner in corners[i::2]) for i, side in enumerate(size)
        )
        return x0, y0, x1, y1

    if task.answer == "box":
        return Box(box(ids), found.score, confidence)
    if task.answer == "text":
        text = vocabulary.decode(ids)
        text = text.translate(PUNCTUATION) if task.without_punctuation else text
        return Text(text.strip(), found.score, confidence)
    # Objects are four bins and the words up to the next bin; anything else is ignored.
    objects, bins = [], vocabulary.bins
    starts = [i for i, one in enumerate(ids) if one in bins and (i == 0 or ids[i - 1] not in bins)]
    for start, stop in pairwise([*starts, len(ids)]):
        label = [one for one in ids[start + 4 : stop] if one < vocabulary.num_words]
        if label and all(one in bins for one in ids[start : start + 4]):
            objects.append((vocabulary.decode(label).strip(), box(ids[start : start + 4])))
    return Objects(tuple(objects), found.score, confidence)


def read_choice(log_probs: Sequence[float], labels: Sequence[str]) -> Choice:
    """The most probable of the answers ``labels``. UserError if a score is NaN or infinite."""
    if not all(map(isfinite, log_probs)):
        raise UserError("the scores of the choices are not finite; try dtype float32")
    scores = dict(zip(labels, log_probs, strict=True))
    best = max(scores, key=scores.__getitem__)
    return Choice(best, scores[best], exp(scores[best]), scores)
