"""Tasks of a generative model as data: the prompt, the kind of answer, and the search options.

`tasks.yaml` in this folder has the tasks of the released models. A model folder may have its own `tasks.yaml`, with the
tasks that the model was fine-tuned for. A user's file is read in the same way.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onepeace.config import Options, build, merge, read_yaml
from onepeace.errors import UserError, one_line
from onepeace.generative.scoring import Trie
from onepeace.generative.search import SearchOptions
from onepeace.generative.vocabulary import Vocabulary, normalise_caption, normalise_question
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
    agreement: float = 0.0
    """Weight of the cosine of text and item in the ranking of texts; for models with embeddings."""
    unsure_below: dict[str, float] = field(default_factory=dict)
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

    @property
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

    @property
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
