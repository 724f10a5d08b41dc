"""Pipeline from items to answers: items are decoded ahead in threads, encoded in batches, then searched or scored.

Results come in order and in bounded memory, failures as values. `Generator` is what users call.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from onepeace.embed.items import check_many
from onepeace.embed.stream import decode_ahead
from onepeace.errors import UserError, one_line
from onepeace.files.source import describe
from onepeace.generative.answers import Answer, Asked, read_answer, read_choice
from onepeace.generative.reader import Reader
from onepeace.generative.scoring import Trie, score_answers
from onepeace.generative.search import Allowed, Hypothesis, search
from onepeace.generative.tasks import Task
from onepeace.generative.vocabulary import Vocabulary
from onepeace.processors import ImageProcessor
from onepeace.processors.processor import Processor
from onepeace.processors.tokenizer import BOS, EOS, UNK


@dataclass(frozen=True)
class Generated:
    """Result of one item."""

    index: int
    """Place of the item among those given."""
    name: str
    answers: tuple[Answer, ...] = ()
    """Best first: one for each hypothesis of the search, or the choice; none if the item failed."""
    reason: str | None = None
    """Why it failed, in one line."""

    @property
    def answer(self) -> Answer:
        """The best. UserError if the item failed."""
        if not self.answers:
            raise UserError(f"{self.name}: {self.reason}")
        return self.answers[0]


class _Choices(NamedTuple):
    """Answers to choose from."""

    names: tuple[str, ...]
    words: tuple[str, ...]
    trie: Trie
    """The words' tokens."""


class _Asking(NamedTuple):
    """A task, ready for items."""

    task: Task
    processors: Mapping[str, Processor]
    """Processors by modality; none where texts alone are read."""
    choices: _Choices | None
    """The task's, if it has some."""


class _Read(NamedTuple):
    """An item on its way into a batch."""

    asking: _Asking
    ids: list[int]
    """Ids with bos and eos."""
    key: str | None
    """The modality of the sample."""
    sample: Tensor | None
    prefix: list[int]
    choices: _Choices | None
    """None where the answer is searched for."""
    asked: Asked


class Pipeline:
    """A model and its vocabulary, and how items go through them."""

    def __init__(self, reader: Reader, vocabulary: Vocabulary) -> None:
        self.reader, self.vocabulary = reader, vocabulary
        self._trie = lru_cache(maxsize=16)(partial(_trie, vocabulary))  # items often have the same candidates

    def stream(self, pairs: Iterable[tuple[Task, Mapping[str, object]]], batch_size: int) -> Iterator[Generated]:
        """The result of every pair of a task and an item, see `Generator.stream`."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size!r}; it must be a whole number from 1")
        return self._results(pairs, batch_size)

    def _results(self, pairs: Iterable[tuple[Task, Mapping[str, object]]], batch_size: int) -> Iterator[Generated]:
        ready: dict[int, tuple[Task, _Asking]] = {}

        def prepared() -> Iterator[tuple[_Asking, Mapping[str, object]]]:
            for task, item in pairs:
                if not isinstance(item, Mapping):
                    raise UserError(f'an item is a dictionary of fields, {{"image": ...}}, not {describe(item)}')
                if id(task) not in ready:
                    ready[id(task)] = task, self._asking(task)
                yield ready[id(task)][1], item

        decoded = decode_ahead(prepared(), lambda pair: self._read(*pair), ahead=2 * batch_size)
        while block := list(islice(decoded, batch_size)):
            outputs = iter(self._answers([found for _, _, found in block if isinstance(found, _Read)]))
            for index, (asking, item), found in block:
                value = next((item[key] for key in asking.processors if item.get(key) is not None), None)
                name = f"item {index}" if value is None else describe(value)
                output = next(outputs) if isinstance(found, _Read) else found
                if isinstance(output, Exception):
                    yield Generated(index, name, (), one_line(output).removeprefix(f"{name}: "))
                else:
                    yield Generated(index, name, output)

    def _asking(self, task: Task) -> _Asking:
        """UserError if the model lacks what the task needs."""
        if task.answer == "codes":
            grid = self.reader.decoder.code_grid
            if grid is None or not self.vocabulary.codes:
                raise UserError("this model writes no image codes")
            task = replace(task, search=replace(task.search, min_len=grid**2, max_len=grid**2))
        if task.answer in ("box", "objects") and not self.vocabulary.bins:
            raise UserError("this model has no bins for boxes")
        if task.image is None and _has_boxes(task):
            raise UserError("a box is a place on a picture, and there is no picture")
        is_closed = task.answer == "choice" and task.choices is not None
        return _Asking(task, self.reader.processors(task), self._choices(task.choices) if is_closed else None)

    def _read(self, asking: _Asking, item: Mapping[str, object]) -> "_Read | Exception":
        try:
            return self._checked(asking, dict(item))
        except Exception as error:  # whatever a processor trips over, the item is to be named
            return error

    def _checked(self, asking: _Asking, values: dict[str, Any]) -> _Read:
        task, processors, choices = asking
        key, sample, asked = None, None, Asked(self.vocabulary, task)
        if processors:
            there = [key for key in processors if values.get(key) is not None]
            if len(there) != 1:
                raise UserError(f"the task needs one of {', '.join(processors)}, and the item has {len(there)}")
            key = there[0]
            processor = processors[key]
            sample = processor.decode(values[key])
            if isinstance(processor, ImageProcessor) and _has_boxes(task):
                size = processor.size_in_pixels(values["image"])
                asked = replace(asked, size=size, resized=(processor.width, processor.height))
        if "box" in task.fields:
            values["box"] = self._box(values.get("box"), asked)
        if empty := [name for name in task.fields if isinstance(text := values.get(name), str) and not text.strip()]:
            raise UserError(f"the text for {{{empty[0]}}} is empty")
        source, prefix = task.ids(self.vocabulary, values) if self.reader.reads_words else ([], [])
        longest = task.search.max_len
        if task.answer == "choice":
            candidates = values.get("candidates")
            if choices is None or candidates is not None:
                choices = self._choices(candidates)
            longest = choices.trie.depth
        limit = self.reader.num_positions
        if max(len(source) + 2, len(prefix) + longest + 1) > limit:
            raise UserError(
                f"its text has {len(source)} tokens and its answer up to {longest}; the model has {limit} places"
            )
        return _Read(asking, [BOS, *source, EOS], key, sample, prefix, choices, replace(asked, prefix=len(prefix)))

    def _box(self, box: object, asked: Asked) -> str:
        """A box as text."""
        box = box.tolist() if isinstance(box, (np.ndarray, Tensor)) else box
        if not _is_box(box):
            raise UserError(f"a box is [x0, y0, x1, y1] in pixels, x0 <= x1 and y0 <= y1, not {box!r}")
        return self.vocabulary.decode(self.vocabulary.bins_of(box, asked.size, asked.resized))

    def _choices(self, given: object) -> _Choices:
        """Choices from their words, alone or by name. UserError if there are none, or one has no words."""
        if isinstance(given, Mapping):
            named = list(given.items())
        else:
            named = [(one, one) for one in check_many(() if given is None else given, "candidates")]
        if not named:
            raise UserError("there is nothing to choose from; give candidates or labels, as texts")
        if wrong := [word for _, word in named if not isinstance(word, str) or not word.strip()]:
            raise UserError(f"{wrong[0]!r} is nothing to choose; candidates and labels are texts with words in them")
        names, words = zip(*dict(named).items(), strict=True)
        return _Choices(names, words, self._trie(words))

    def _answers(self, items: list[_Read]) -> list["tuple[Answer, ...] | UserError"]:
        """The answers of a block of items, computed in groups of the same task, modality and choices."""
        found: dict[int, tuple[Answer, ...] | UserError] = {}
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, item in enumerate(items):
            groups.setdefault((id(item.asking), item.key, item.choices and item.choices.words), []).append(i)
        for members in groups.values():
            found.update(zip(members, self._computed([items[i] for i in members]), strict=True))
        return [found[i] for i in range(len(items))]

    def _computed(self, group: list[_Read]) -> list["tuple[Answer, ...] | UserError"]:
        """The answers of a group; if the model refuses it, those of its items one by one."""
        choices = group[0].choices
        try:
            with torch.inference_mode():
                return self._searched(group) if choices is None else self._chosen(group, choices.trie)
        except torch.OutOfMemoryError as error:
            raise UserError(f"no memory for {len(group)} items at once; lower batch_size") from error
        except UserError as error:
            return [error] if len(group) == 1 else [found for item in group for found in self._computed([item])]

    def _start(self, items: list[_Read], longest: int) -> dict[str, Any]:
        """The decoder before a batch of items, as `search` and `score_answers` take it."""
        decoder = self.reader.decoder
        device = decoder.token_embed.weight.device
        samples = [item.sample for item in items if item.sample is not None]
        encoded = self.reader.encode([item.ids for item in items], items[0].key, samples)
        is_codes = items[0].asking.task.answer == "codes"
        code_rows = torch.ones(len(items), dtype=torch.bool, device=device) if is_codes else None
        length = max(len(item.prefix) for item in items) + longest + 1
        return {
            "step": decoder.step,
            "state": decoder.start(encoded, length, code_rows),
            "num_sources": len(items),
            "prefixes": [item.prefix for item in items],
            "device": device,
        }

    def _chosen(self, items: list[_Read], trie: Trie) -> list["tuple[Answer, ...] | UserError"]:
        renormalise = items[0].asking.task.renormalise
        scores = score_answers(trie=trie, renormalise=renormalise, **self._start(items, trie.depth))
        names = [item.choices.names for item in items if item.choices is not None]
        return [(read_choice(row, each),) for row, each in zip(scores.tolist(), names, strict=True)]

    def _searched(self, items: list[_Read]) -> list["tuple[Answer, ...] | UserError"]:
        task = items[0].asking.task
        allowed, writes_codes = None, task.answer == "codes"
        if task.answer == "box" and task.confined:
            allowed = _four(self.vocabulary.bins)
        elif writes_codes:
            allowed = _within(self.vocabulary.codes)
        start = self._start(items, task.search.max_len)
        after = not task.renormalise
        found = search(options=task.search, allowed=allowed, mask_after_softmax=after, codes=writes_codes, **start)
        return [_readable(hypotheses, item.asked) for hypotheses, item in zip(found, items, strict=True)]


def _four(bins: range) -> Allowed:
    """Four bins and eos."""
    ids, end = torch.arange(bins.start, bins.stop), torch.tensor([EOS])
    return lambda source, answer: ids if len(answer) < 4 else end


def _within(codes: range) -> Allowed:
    """Image codes, and the special tokens that the released code keeps in the softmax."""
    ids = torch.tensor([*range(UNK + 1), *codes])
    return lambda source, answer: ids


def _readable(hypotheses: Sequence[Hypothesis], asked: Asked) -> "tuple[Answer, ...] | UserError":
    """The answers of hypotheses; the error if the best is none. Others that are none are left out."""
    answers: list[Answer] = []
    for hypothesis in hypotheses:
        try:
            answers.append(read_answer(hypothesis, asked))
        except UserError as error:
            if not answers:
                return error
    return tuple(answers) or UserError("no answer has a finite score; try dtype float32")


def _is_box(box: object) -> "TypeGuard[Sequence[float]]":
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    return all(isinstance(one, Real) and isfinite(one) for one in box) and box[0] <= box[2] and box[1] <= box[3]


def _has_boxes(task: Task) -> bool:
    return task.answer in ("box", "objects") or "box" in task.fields


def _trie(vocabulary: Vocabulary, answers: tuple[str, ...]) -> Trie:
    """Trie of answers as the decoder writes them: with a space in front. UserError names two with the same tokens."""
    known: dict[tuple[int, ...], str] = {}
    for answer in answers:
        ids = tuple(vocabulary.encode(f" {answer.strip()}"))
        if ids in known:
            raise UserError(f"{known[ids]!r} and {answer!r} to choose from are the same to the model")
        known[ids] = answer
    return Trie(list(known))
