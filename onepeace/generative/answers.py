"""Answers of a generative model, typed: a text, a box, a choice, or boxes with words.

Every answer has a `score`, by which the search ranks it, and a `confidence` between 0 and 1. Of what was searched for,
the confidence is the exponential of the mean log-probability of the answer's tokens: the probability of a token, as a
geometric mean. A prefix does not count, and eos only where the model could have gone on. Of a choice it is the
probability of this answer among the choices.
"""

import string
from collections.abc import Callable, Mapping, Sequence
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
    """Words; as a string they are marked where the model is unsure."""

    text: str
    score: float
    confidence: float
    agreement: float | None = None
    """Cosine of the words and the item, both by the model's own encoder, where the task asks for it."""
    is_sure: bool = True
    """Whether they agree with the item as well as the task asks (``unsure_below``)."""

    def __str__(self) -> str:
        return self.text if self.is_sure else f"unsure ({self.text})"


@dataclass(frozen=True)
class Box:
    """Place of something."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the picture as it was given, within it."""
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
    """Things that were found, with their boxes."""

    objects: tuple[tuple[str, tuple[float, float, float, float]], ...]
    """Words and a box as in `Box`, in the order of the answer."""
    score: float
    confidence: float


Answer: TypeAlias = Text | Box | Choice | Objects


@dataclass(frozen=True)
class Asked:
    """Facts about an item beside the tokens of its answer."""

    vocabulary: Vocabulary
    task: Task
    prefix: int = 0
    """Tokens in front of the answer."""
    size: tuple[int, int] = (1, 1)
    """Width and height of the picture as it was given."""
    resized: tuple[int, int] = (1, 1)
    """Width and height as the model reads it."""


def read_answer(found: Hypothesis, asked: Asked) -> Answer:
    """The answer that tokens mean."""
    ids = found.tokens[asked.prefix : -1]
    counted = found.token_scores[asked.prefix :]
    if len(ids) == asked.task.search.max_len and len(ids):  # there eos was forced
        counted = counted[:-1]
    return KINDS[asked.task.answer](ids, asked, found.score, exp(sum(counted) / len(counted)))


def read_choice(log_probs: Sequence[float], labels: Sequence[str]) -> Choice:
    """The most probable of some answers. UserError if a score is NaN or infinite."""
    if not all(map(isfinite, log_probs)):
        raise UserError("the scores of the choices are not finite; try dtype float32")
    scores = dict(zip(labels, log_probs, strict=True))
    best = max(scores, key=scores.__getitem__)
    return Choice(best, scores[best], exp(scores[best]), scores)


def _text(ids: Sequence[int], asked: Asked, score: float, confidence: float) -> Text:
    text = asked.vocabulary.decode(ids)
    return Text((text.translate(PUNCTUATION) if asked.task.without_punctuation else text).strip(), score, confidence)


def _box(ids: Sequence[int], asked: Asked, score: float, confidence: float) -> Box:
    return Box(_clipped(ids, asked), score, confidence)


def _objects(ids: Sequence[int], asked: Asked, score: float, confidence: float) -> Objects:
    """Four bins and the words up to the next bin, again and again; what is not of that form is left out."""
    found, bins, words = [], asked.vocabulary.bins, asked.vocabulary.num_words
    starts = [i for i, one in enumerate(ids) if one in bins and (i == 0 or ids[i - 1] not in bins)]
    for start, stop in pairwise([*starts, len(ids)]):
        label = [one for one in ids[start + 4 : stop] if one < words]
        if label and all(one in bins for one in ids[start : start + 4]):
            found.append((asked.vocabulary.decode(label).strip(), _clipped(ids[start : start + 4], asked)))
    return Objects(tuple(found), score, confidence)


def _clipped(ids: Sequence[int], asked: Asked) -> tuple[float, float, float, float]:
    corners = asked.vocabulary.box_of(ids, asked.size, asked.resized)
    (x0, x1), (y0, y1) = (
        sorted(min(max(corner, 0.0), float(side)) for corner in corners[i::2]) for i, side in enumerate(asked.size)
    )
    return x0, y0, x1, y1


KINDS: Mapping[str, Callable[[Sequence[int], Asked, float, float], Answer]] = {
    "text": _text,
    "box": _box,
    "objects": _objects,
}
