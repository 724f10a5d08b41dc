"""Pipeline from items to answers: items are decoded ahead in threads, encoded in batches, then searched or scored.

Results are yielded in order and in bounded memory, with errors as values. Users call `Generator`.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from onepeace.embed.stream import decode_ahead
from onepeace.errors import UserError, expect, one_line
from onepeace.files.source import describe
from onepeace.generative.answers import Answer, Text, read_answer, read_choice
from onepeace.generative.reader import FeatureReader, Reader
from onepeace.generative.scoring import score_answers
from onepeace.generative.search import search
from onepeace.generative.tasks import Task
from onepeace.generative.vocabulary import Vocabulary
from onepeace.processors import ImageProcessor
from onepeace.processors.tokenizer import BOS, EOS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generated:
    """Result of one item."""

    index: int
    """Position of the item in the input."""
    name: str
    answers: tuple[Answer, ...] = ()
    """Best first: one for each hypothesis of the search, or the choice; none if the item failed."""
    reason: str | None = None
    """Reason of a failure, in one line."""

    @property
    def answer(self) -> Answer:
        """The best answer. UserError if the item failed."""
        if not self.answers:
            raise UserError(f"{self.name}: {self.reason}")
        return self.answers[0]


class _Read(NamedTuple):
    """A decoded item, ready for a batch."""

    ids: list[int]
    """Ids with bos and eos."""
    key: str | None
    """The modality of the sample."""
    sample: Tensor | None
    prefix: list[int]
    """Tokens that the decoder starts with."""
    size: tuple[int, int]
    """Width and height of the original picture."""
    resized: tuple[int, int]
    """Width and height of the picture that the model reads."""
    is_silent: bool
    """Whether the sample is digital silence."""


Answers: TypeAlias = "tuple[Answer, ...] | UserError"
"""Answers of an item, best first, or the reason why there are none."""


class Pipeline:
    """Runs a task on items with a model.

    UserError if the model does not support the task, or if the task needs choices and has none.
    """

    def __init__(self, reader: Reader, vocabulary: Vocabulary, task: Task) -> None:
        self.has_boxes = task.answer in ("box", "objects") or "box" in task.fields
        if self.has_boxes and not vocabulary.bins:
            raise UserError("this model has no bins for boxes")
        if self.has_boxes and task.image is None:
            raise UserError("a box is a place on a picture, and there is no picture")
        self.reader, self.vocabulary, self.task = reader, vocabulary, task
        self.processors = reader.processors(task)
        """Processors by modality; empty if the task only reads text."""
        self.names = list(task.labels or ())
        self.trie = task.trie(vocabulary) if task.answer == "choice" else None
        self.longest = task.search.max_len if self.trie is None else self.trie.depth
        """Number of tokens of the longest answer."""

    def stream(self, items: Iterable[Mapping[str, object]], batch_size: int) -> Iterator[Generated]:
        """The result of every item, see `Generator.stream`."""
        with closing(decode_ahead(_mappings(items), self._read, ahead=2 * batch_size)) as decoded:
            while block := list(islice(decoded, batch_size)):
                outputs = self._answers({index: found for index, _, found in block if isinstance(found, _Read)})
                for index, item, found in block:
                    value = next((item[key] for key in self.processors if item.get(key) is not None), None)
                    name = f"item {index}" if value is None else describe(value)
                    output = found if isinstance(found, Exception) else outputs[index]
                    if isinstance(output, Exception):
                        yield Generated(index, name, (), one_line(output).removeprefix(f"{name}: "))
                    elif isinstance(found, _Read) and found.is_silent:
                        log.warning("%s: digital silence; what is written says nothing about a sound", name)
                        unsure = (replace(one, is_sure=False) if isinstance(one, Text) else one for one in output)
                        yield Generated(index, name, tuple(unsure))
                    else:
                        yield Generated(index, name, output)

    def _read(self, item: Mapping[str, object]) -> _Read:
        values: dict[str, Any] = dict(item)
        task, key, sample, size, resized = self.task, None, None, (1, 1), (1, 1)
        if self.processors:
            there = [key for key in self.processors if values.get(key) is not None]
            if len(there) != 1:
                raise UserError(f"the task needs one of {', '.join(self.processors)}, and the item has {len(there)}")
            key = there[0]
            processor = self.processors[key]
            sample = processor.decode(values[key])
            if isinstance(processor, ImageProcessor) and self.has_boxes:
                size, resized = processor.size_in_pixels(values["image"]), (processor.width, processor.height)
        if "box" in task.fields:
            box = values.get("box")
            box = box.tolist() if isinstance(box, (np.ndarray, Tensor)) else box
            if not _is_box(box):
                raise UserError(f"a box is [x0, y0, x1, y1] in pixels, x0 <= x1 and y0 <= y1, not {box!r}")
            values["box"] = self.vocabulary.decode(self.vocabulary.bins_of(box, size, resized))
        if empty := [name for name in task.fields if isinstance(text := values.get(name), str) and not text.strip()]:
            raise UserError(f"the text for {{{empty[0]}}} is empty")
        source, prefix = task.ids(self.vocabulary, values) if self.reader.reads_words else ([], [])
        longest, limit = self.longest, self.reader.num_positions
        if max(len(source) + 2, len(prefix) + longest + 1) > limit:
            raise UserError(
                f"its text has {len(source)} tokens and its answer up to {longest}; the model has {limit} places"
            )
        is_silent = key == "audio" and sample is not None and bool(sample.min() == sample.max())
        return _Read([BOS, *source, EOS], key, sample, prefix, size, resized, is_silent)

    def _answers(self, items: Mapping[int, _Read]) -> dict[int, Answers]:
        """The answers of a block of items by index, computed in groups of one modality."""
        groups: dict[str | None, list[int]] = {}
        for index, item in items.items():
            groups.setdefault(item.key, []).append(index)
        return {
            index: found
            for members in groups.values()
            for index, found in zip(members, self._computed([items[index] for index in members]), strict=True)
        }

    def _computed(self, group: list[_Read]) -> list[Answers]:
        """The answers of a group; if the model refuses the group, its items are computed one by one."""
        try:
            with torch.inference_mode():
                return self._written(group)
        except torch.OutOfMemoryError as error:
            raise UserError(f"no memory for {len(group)} items at once; lower batch_size") from error
        except UserError as error:
            return [error] if len(group) == 1 else [found for item in group for found in self._computed([item])]

    def _written(self, items: list[_Read]) -> list[Answers]:
        samples = [item.sample for item in items if item.sample is not None]
        encoded = self.reader.encode([item.ids for item in items], items[0].key, samples)
        decoder = self.reader.decoder
        start: dict[str, Any] = {
            "step": decoder.step,
            "state": decoder.start(encoded, max(len(item.prefix) for item in items) + self.longest + 1),
            "num_sources": len(items),
            "prefixes": [item.prefix for item in items],
            "device": decoder.token_embed.weight.device,
        }
        if self.trie is not None:
            return [(read_choice(row, self.names),) for row in score_answers(trie=self.trie, **start).tolist()]
        # The released code allows words here too, which do not form a box.
        bins, end = torch.tensor(self.vocabulary.bins), torch.tensor([EOS])
        allowed = (lambda answer: bins if len(answer) < 4 else end) if self.task.answer == "box" else None
        answers: list[Answers] = []
        for item, found in zip(items, search(options=self.task.search, allowed=allowed, **start), strict=True):
            place: Any = {"prefix": len(item.prefix), "size": item.size, "resized": item.resized}
            read = tuple(read_answer(one, self.task, self.vocabulary, **place) for one in found)
            answers.append(read or UserError("no answer has a finite score; try dtype float32"))
        if encoded.vectors is None or not (self.task.agreement or self.task.unsure_below):
            return answers
        return self._ranked(answers, encoded.vectors, items[0].key)

    def _ranked(self, answers: Sequence[Answers], vectors: Tensor, key: str | None) -> list[Answers]:
        """Texts ranked by their score plus their cosine with the item, weighted as in the task."""
        texts = [[] if isinstance(own, UserError) else [expect(one, Text) for one in own] for own in answers]
        cosines = expect(self.reader, FeatureReader).agreement(vectors, [[one.text for one in own] for own in texts])
        least = self.task.unsure_below.get(expect(key, str), -1.0)
        ranked: list[Answers] = []
        for own, agreed, answer in zip(texts, cosines, answers, strict=True):
            known = [
                replace(text, agreement=cosine, is_sure=cosine >= least)
                for text, cosine in zip(own, agreed, strict=True)
            ]
            known.sort(key=lambda text: -text.score - self.task.agreement * (text.agreement or 0.0))
            ranked.append(answer if isinstance(answer, UserError) else tuple(known))
        return ranked


def _mappings(items: Iterable[Mapping[str, object]]) -> Iterator[Mapping[str, object]]:
    for item in items:
        if not isinstance(item, Mapping):
            raise UserError(f'an item is a dictionary of fields, {{"image": ...}}, not {describe(item)}')
        yield item


def _is_box(box: object) -> "TypeGuard[Sequence[float]]":
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    return all(isinstance(one, Real) and isfinite(one) for one in box) and box[0] <= box[2] and box[1] <= box[3]
