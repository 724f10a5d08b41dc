"""Pipeline from items to answers: items are decoded ahead in threads, encoded in batches, then searched or scored.

Results come in order and in bounded memory, failures as values. `Generator` is what users call.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from numbers import Real
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor

from onepeace.embed.stream import decode_ahead
from onepeace.errors import UserError, expect, one_line
from onepeace.files.source import describe
from onepeace.generative.answers import Answer, Asked, Text, read_answer, read_choice
from onepeace.generative.reader import FeatureReader, Reader
from onepeace.generative.scoring import Trie, score_answers
from onepeace.generative.search import Hypothesis, search
from onepeace.generative.tasks import Task
from onepeace.generative.text_decoder import Encoded
from onepeace.generative.vocabulary import Vocabulary
from onepeace.processors import ImageProcessor
from onepeace.processors.tokenizer import BOS, EOS


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


class _Read(NamedTuple):
    """An item on its way into a batch."""

    ids: list[int]
    """Ids with bos and eos."""
    key: str | None
    """The modality of the sample."""
    sample: Tensor | None
    prefix: list[int]
    asked: Asked


class Pipeline:
    """A task, and how items go through a model that does it.

    UserError if the model lacks what the task needs, or a task of choices has none.
    """

    def __init__(self, reader: Reader, vocabulary: Vocabulary, task: Task) -> None:
        self.has_boxes = task.answer in ("box", "objects") or "box" in task.fields
        if self.has_boxes and not vocabulary.bins:
            raise UserError("this model has no bins for boxes")
        if self.has_boxes and task.image is None:
            raise UserError("a box is a place on a picture, and there is no picture")
        self.reader, self.vocabulary, self.task = reader, vocabulary, task
        self.processors = reader.processors(task)
        """Processors by modality; none where texts alone are read."""
        self.names = list(task.labels or ())
        self.trie = _trie(vocabulary, task.labels or {}) if task.answer == "choice" else None

    def stream(self, items: Iterable[Mapping[str, object]], batch_size: int) -> Iterator[Generated]:
        """The result of every item, see `Generator.stream`."""
        decoded = decode_ahead(_mappings(items), self._read, ahead=2 * batch_size)
        while block := list(islice(decoded, batch_size)):
            outputs = self._answers({index: found for index, _, found in block if isinstance(found, _Read)})
            for index, item, found in block:
                value = next((item[key] for key in self.processors if item.get(key) is not None), None)
                name = f"item {index}" if value is None else describe(value)
                output = found if isinstance(found, Exception) else outputs[index]
                if isinstance(output, Exception):
                    yield Generated(index, name, (), one_line(output).removeprefix(f"{name}: "))
                else:
                    yield Generated(index, name, output)

    def _read(self, item: Mapping[str, object]) -> "_Read | Exception":
        try:
            return self._checked(dict(item))
        except Exception as error:  # whatever a processor trips over, the item is to be named
            return error

    def _checked(self, values: dict[str, Any]) -> _Read:
        task, key, sample, asked = self.task, None, None, Asked(self.vocabulary, self.task)
        if self.processors:
            there = [key for key in self.processors if values.get(key) is not None]
            if len(there) != 1:
                raise UserError(f"the task needs one of {', '.join(self.processors)}, and the item has {len(there)}")
            key = there[0]
            processor = self.processors[key]
            sample = processor.decode(values[key])
            if isinstance(processor, ImageProcessor) and self.has_boxes:
                size = processor.size_in_pixels(values["image"])
                asked = replace(asked, size=size, resized=(processor.width, processor.height))
        if "box" in task.fields:
            values["box"] = self._box(values.get("box"), asked)
        if empty := [name for name in task.fields if isinstance(text := values.get(name), str) and not text.strip()]:
            raise UserError(f"the text for {{{empty[0]}}} is empty")
        source, prefix = task.ids(self.vocabulary, values) if self.reader.reads_words else ([], [])
        longest, limit = self._longest, self.reader.num_positions
        if max(len(source) + 2, len(prefix) + longest + 1) > limit:
            raise UserError(
                f"its text has {len(source)} tokens and its answer up to {longest}; the model has {limit} places"
            )
        return _Read([BOS, *source, EOS], key, sample, prefix, replace(asked, prefix=len(prefix)))

    @property
    def _longest(self) -> int:
        """Tokens of the longest answer."""
        return self.task.search.max_len if self.trie is None else self.trie.depth

    def _box(self, box: object, asked: Asked) -> str:
        """A box as text."""
        box = box.tolist() if isinstance(box, (np.ndarray, Tensor)) else box
        if not _is_box(box):
            raise UserError(f"a box is [x0, y0, x1, y1] in pixels, x0 <= x1 and y0 <= y1, not {box!r}")
        return self.vocabulary.decode(self.vocabulary.bins_of(box, asked.size, asked.resized))

    def _answers(self, items: Mapping[int, _Read]) -> dict[int, "tuple[Answer, ...] | UserError"]:
        """The answers of a block of items by their numbers, computed in groups of one modality."""
        groups: dict[str | None, list[int]] = {}
        for index, item in items.items():
            groups.setdefault(item.key, []).append(index)
        return {
            index: found
            for members in groups.values()
            for index, found in zip(members, self._computed([items[index] for index in members]), strict=True)
        }

    def _computed(self, group: list[_Read]) -> list["tuple[Answer, ...] | UserError"]:
        """The answers of a group; if the model refuses it, those of its items one by one."""
        try:
            with torch.inference_mode():
                return self._searched(group) if self.trie is None else self._chosen(group, self.trie)
        except torch.OutOfMemoryError as error:
            raise UserError(f"no memory for {len(group)} items at once; lower batch_size") from error
        except UserError as error:
            return [error] if len(group) == 1 else [found for item in group for found in self._computed([item])]

    def _encoded(self, items: list[_Read]) -> Encoded:
        samples = [item.sample for item in items if item.sample is not None]
        return self.reader.encode([item.ids for item in items], items[0].key, samples)

    def _start(self, items: list[_Read], encoded: Encoded) -> dict[str, Any]:
        """The decoder before a batch of items, as `search` and `score_answers` take it."""
        decoder = self.reader.decoder
        return {
            "step": decoder.step,
            "state": decoder.start(encoded, max(len(item.prefix) for item in items) + self._longest + 1),
            "num_sources": len(items),
            "prefixes": [item.prefix for item in items],
            "device": decoder.token_embed.weight.device,
        }

    def _chosen(self, items: list[_Read], trie: Trie) -> list["tuple[Answer, ...] | UserError"]:
        scores = score_answers(trie=trie, **self._start(items, self._encoded(items)))
        return [(read_choice(row, self.names),) for row in scores.tolist()]

    def _searched(self, items: list[_Read]) -> list["tuple[Answer, ...] | UserError"]:
        # The released code allows words in a box, which then is none.
        bins, end = torch.tensor(self.vocabulary.bins), torch.tensor([EOS])
        allowed = (lambda _, answer: bins if len(answer) < 4 else end) if self.task.answer == "box" else None
        encoded = self._encoded(items)
        found = search(options=self.task.search, allowed=allowed, **self._start(items, encoded))
        answers = [_readable(hypotheses, item.asked) for hypotheses, item in zip(found, items, strict=True)]
        if encoded.vectors is None or not (self.task.agreement or self.task.unsure_below):
            return answers
        return self._ranked(answers, encoded.vectors, items[0].key)

    def _ranked(
        self, answers: Sequence["tuple[Answer, ...] | UserError"], vectors: Tensor, key: str | None
    ) -> list["tuple[Answer, ...] | UserError"]:
        """Texts in the order of their score and their cosine with the item, by the weights of the task."""
        texts = [[] if isinstance(own, UserError) else [expect(one, Text) for one in own] for own in answers]
        cosines = expect(self.reader, FeatureReader).agreement(vectors, [[one.text for one in own] for own in texts])
        least = self.task.unsure_below.get(expect(key, str), -1.0)
        ranked: list[tuple[Answer, ...] | UserError] = []
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


def _readable(hypotheses: Sequence[Hypothesis], asked: Asked) -> "tuple[Answer, ...] | UserError":
    if not hypotheses:
        return UserError("no answer has a finite score; try dtype float32")
    return tuple(read_answer(hypothesis, asked) for hypothesis in hypotheses)


def _is_box(box: object) -> "TypeGuard[Sequence[float]]":
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    return all(isinstance(one, Real) and isfinite(one) for one in box) and box[0] <= box[2] and box[1] <= box[3]


def _trie(vocabulary: Vocabulary, labels: Mapping[str, str]) -> Trie:
    """Trie of choices as the decoder writes them: with a space in front. UserError for what cannot be chosen."""
    if not labels:
        raise UserError("there is nothing to choose from; give the task choices, or labels")
    known: dict[tuple[int, ...], str] = {}
    for word in labels.values():
        if not isinstance(word, str) or not word.strip():
            raise UserError(f"{word!r} is nothing to choose; choices and labels are texts with words in them")
        ids = tuple(vocabulary.encode(f" {word.strip()}"))
        if ids in known:
            raise UserError(f"{known[ids]!r} and {word!r} to choose from are the same to the model")
        known[ids] = word
    return Trie(list(known))
