"""Typed answers of a generative model: a text, a box, a choice, or boxes with labels.

Every answer has a `score`, by which the search ranks it, and a `confidence` between 0 and 1. For answers found by
search, the confidence is the geometric mean of the probabilities of the answer's tokens, without those of a prefix, and
with eos only if it was not forced. For a choice, it is the probability of this answer among the choices.
"""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, isfinite
from typing import TypeAlias

from onepeace.errors import UserError
from onepeace.generative.search import Hypothesis
from onepeace.generative.tasks import Task
from onepeace.generative.vocabulary import Size, Vocabulary

Corners: TypeAlias = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the original picture."""

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

    box: Corners
    """Within the picture."""
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

    objects: tuple[tuple[str, Corners], ...]
    """Label and box (as in `Box`) of each object, in the order of the answer."""
    score: float
    confidence: float


Answer: TypeAlias = Text | Box | Choice | Objects


def read_answer(
    hypothesis: Hypothesis,
    task: Task,
    vocabulary: Vocabulary,
    *,
    prefix: int = 0,
    size: Size = (1, 1),
    resized: Size = (1, 1),
) -> Answer:
    """Convert the tokens of a hypothesis to an answer.

    Args:
        prefix: number of tokens in front of the answer.
        size, resized: sizes of the original picture, and of the one that the model reads.
    """
    ids = hypothesis.tokens[prefix:-1]
    score = hypothesis.score
    confidence = _confidence(hypothesis, task, prefix)
    if task.answer == "box":
        return Box(_read_box(ids, vocabulary, size, resized), score, confidence)
    if task.answer == "text":
        text = vocabulary.decode(ids)
        if task.without_punctuation:
            text = text.translate(PUNCTUATION)
        return Text(text.strip(), score, confidence)
    objects = []
    for bins, label in _split_objects(ids, vocabulary):
        box = _read_box(bins, vocabulary, size, resized)
        objects.append((vocabulary.decode(label).strip(), box))
    return Objects(tuple(objects), score, confidence)


def _confidence(hypothesis: Hypothesis, task: Task, prefix: int) -> float:
    """Geometric mean of the probabilities of the answer's tokens, and of eos if it was not forced."""
    log_probs = hypothesis.token_scores[prefix:]
    length = len(log_probs) - 1  # without eos
    is_eos_forced = length > 0 and length == task.search.max_len
    if is_eos_forced:
        log_probs = log_probs[:-1]
    return exp(sum(log_probs) / len(log_probs))


def _read_box(bins: Sequence[int], vocabulary: Vocabulary, size: Size, resized: Size) -> Corners:
    """x0, y0, x1, y1 in pixels of the original picture, clipped to it and in order."""
    width, height = size
    corners = vocabulary.box_of(bins, size, resized)
    x0, x1 = sorted(_clip(x, width) for x in corners[0::2])
    y0, y1 = sorted(_clip(y, height) for y in corners[1::2])
    return x0, y0, x1, y1


def _clip(corner: float, side: int) -> float:
    return min(max(corner, 0.0), float(side))


def _split_objects(ids: Sequence[int], vocabulary: Vocabulary) -> Iterator[tuple[Sequence[int], list[int]]]:
    """The bins and the words of each object: four bins, and the words up to the next bin. Other tokens are ignored."""
    is_bin = [token in vocabulary.bins for token in ids]
    starts = []
    for position in range(len(ids)):
        follows_bin = position > 0 and is_bin[position - 1]
        if is_bin[position] and not follows_bin:
            starts.append(position)
    for start, stop in pairwise([*starts, len(ids)]):
        label = [token for token in ids[start + 4 : stop] if token < vocabulary.num_words]
        if label and all(is_bin[start : start + 4]):
            yield ids[start : start + 4], label


def read_choice(log_probs: Sequence[float], labels: Sequence[str], remedy: str) -> Choice:
    """The most probable of the answers ``labels``. UserError, with a remedy, if a score is NaN or infinite."""
    if not all(map(isfinite, log_probs)):
        raise UserError(f"the scores of the choices are not finite; {remedy}")
    scores = dict(zip(labels, log_probs, strict=True))
    best = max(scores, key=scores.__getitem__)
    return Choice(
        choice=best,
        score=scores[best],
        confidence=exp(scores[best]),
        scores=scores,
    )
