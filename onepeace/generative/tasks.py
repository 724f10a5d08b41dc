"""Tasks of a generative model as data: the prompt, the kind of answer, and the search options.

`tasks.yaml` in this folder has the tasks of the released models. A model folder may have its own `tasks.yaml`, with the
tasks that the model was fine-tuned for. A user's file is read in the same way.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import exp, isfinite
from pathlib import Path
from typing import Any, Literal, TypeAlias

from onepeace.config import Options, build, merge, read_yaml
from onepeace.config.reader import Finite
from onepeace.errors import UserError, one_line
from onepeace.generative.scoring import Trie
from onepeace.generative.search import Hypothesis, SearchOptions
from onepeace.generative.vocabulary import Size, Vocabulary, normalise_caption, normalise_question
from onepeace.hub.folder import TASKS
from onepeace.processors import ImageProcessor

BUILT_IN = Path(__file__).with_name(TASKS)


@dataclass(frozen=True)
class Task:
    """A task: the input of the model, and how the answer is found."""

    prompt: str
    """Text for the encoder. Names in braces are fields of an item; {box} becomes the four bins of a box."""
    answer: Literal["text", "box", "choice", "objects"] = "text"
    """Kind of the answer: text, a box, one of `choices`, or boxes with labels."""
    image: dict[str, Any] | None = field(default_factory=dict)
    """Settings of the picture processor, which override the model's config.yaml; null = the task reads no picture."""
    reads: Literal["text", "question", "caption"] = "text"
    """Normalisation of texts of an item: none, or that of the released models for questions or captions."""
    decoder_prompt: Literal["none", "source"] = "none"
    """Tokens that the decoder starts with: none, or the source (models fine-tuned for VQA and SNLI-VE)."""
    choices: dict[str, str] | list[str] | None = None
    """Possible answers, or the words that the model writes for them, by name."""
    without_punctuation: bool = False
    """Whether punctuation of texts is deleted (COCO's captions have none)."""
    agreement: Finite = 0.0
    """Weight of the cosine of text and item in the ranking of texts; for models with embeddings."""
    unsure_below: dict[str, Finite] = field(default_factory=dict)
    """Cosine below which a text is marked as unsure, by modality of the item."""
    search: SearchOptions = field(default_factory=SearchOptions)

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise UserError("prompt is empty")
        if not isinstance(self.search, SearchOptions):
            raise UserError(f"search is {self.search!r}; it takes SearchOptions(...)")
        if self.answer == "box" and self.search.max_len < 4:
            raise UserError(f"search.max_len is {self.search.max_len}, and a box has 4 tokens; give 4 or more")
        try:
            names = self.fields
        except ValueError as error:
            raise UserError(f"prompt {self.prompt!r}: {error}; write {{{{ and }}}} for braces") from error
        for name in names:
            if not name.isidentifier() or name == "image":
                raise UserError(f"prompt {self.prompt!r}: {{{name}}} is not the name of a field")
        try:
            ImageProcessor.from_config(self.image or {})
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f"image {self.image}: {one_line(error).removeprefix('processors.')}") from error

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Fields of an item that are in the prompt, in its order."""
        names = []
        for _, name, _, _ in string.Formatter().parse(self.prompt):
            if name is not None and name not in names:
                names.append(name)
        return tuple(names)

    @property
    def has_boxes(self) -> bool:
        """Whether it reads or writes boxes."""
        return self.answer in ("box", "objects") or "box" in self.fields

    @cached_property
    def labels(self) -> dict[str, str] | None:
        """Words of each choice by its name."""
        if self.choices is None or isinstance(self.choices, dict):
            return self.choices
        return {name: name for name in self.choices}

    def source(self, values: Mapping[str, object]) -> str:
        """The prompt, filled with fields of an item. UserError if one is missing or not a text."""
        texts = {}
        for name in self.fields:
            value = values.get(name)
            if not isinstance(value, str):
                content = type(value).__name__ if name in values else "nothing"
                raise UserError(f"the task needs a text for {{{name}}}, and the item has {content}")
            texts[name] = self._normalised(value)
        text = self.prompt.format_map(texts)
        return text if text.startswith(" ") else f" {text}"

    def ids(self, vocabulary: Vocabulary, values: Mapping[str, object]) -> tuple[list[int], list[int]]:
        """Ids of an item for the encoder, without bos and eos, and those that the decoder starts with."""
        source = vocabulary.encode(self.source(values))
        prefix = source if self.decoder_prompt == "source" else []
        return source, prefix

    def trie(self, vocabulary: Vocabulary) -> Trie:
        """Trie of the choices as the decoder writes them, with a leading space. UserError for invalid choices."""
        if not self.labels:
            raise UserError("there is nothing to choose from; give the task choices, or labels")
        words = list(self.labels.values())
        for word in words:
            if not isinstance(word, str) or not word.strip():
                raise UserError(f"{word!r} cannot be a choice; choices and labels are texts with at least one word")
        return Trie([vocabulary.encode(f" {word.strip()}") for word in words], words)

    def _normalised(self, text: str) -> str:
        """A text of an item as the model reads it."""
        if self.reads == "text":
            return text
        if self.reads == "caption":
            return normalise_caption(text)
        text = normalise_question(text)
        return text if text.endswith("?") else f"{text}?"


def read_tasks(file: Path | None = None) -> dict[str, Task]:
    """Read the built-in tasks, changed and extended by those of a file, if it exists; null removes a task.

    Raises:
        UserError: a file cannot be read, or a field is wrong; the message names both.
    """
    paths = [BUILT_IN]
    if file is not None and file.is_file():
        paths.append(file)
    sections: Options = {}
    path_of_task: dict[str, str] = {}
    for path in paths:
        for name, section in read_yaml(path).items():
            sections[name] = changed(sections.get(name) or {}, section) if isinstance(section, dict) else section
            path_of_task[name] = str(path)
    tasks = {}
    for name, section in sections.items():
        if section is not None:
            tasks[name] = build(Task, section, path_of_task[name], name)
    return tasks


def changed(section: Options, changes: Options) -> Options:
    """The fields of a task with some changed; choices are replaced, not merged."""
    if "choices" in changes:
        section = {**section, "choices": None}
    return merge(section, changes)


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
