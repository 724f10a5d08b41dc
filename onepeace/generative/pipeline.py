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

from onepeace.device import remedy_for_nan
from onepeace.errors import UserError, expect, reason_at
from onepeace.files.source import describe
from onepeace.generative.decoder import DecoderCache, EncoderOutput
from onepeace.generative.reader import FeatureReader, Reader
from onepeace.generative.scoring import Trie, score_answers
from onepeace.generative.search import Allowed, Hypothesis, search
from onepeace.generative.tasks import Answer, Task, Text, read_answer, read_choice
from onepeace.generative.vocabulary import Size, Vocabulary
from onepeace.processors import ImageProcessor
from onepeace.processors.tokenizer import BOS, EOS
from onepeace.threads import decode_ahead

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
            raise UserError(f"{self.reason}", where=self.name)
        return self.answers[0]


Answers: TypeAlias = "tuple[Answer, ...] | UserError"
"""Answers of an item, best first, or the reason why there are none."""


class DecodedItem(NamedTuple):
    """A decoded item, ready for a batch."""

    ids: list[int]
    """Ids with bos and eos."""
    modality: str | None
    """The modality of the sample; None without a sample."""
    sample: Tensor | None
    prefix: list[int]
    """Tokens that the decoder starts with."""
    size: Size
    """Size of the original picture, for its boxes."""
    resized: Size
    """Size of the picture that the model reads."""
    is_silent: bool
    """Whether the sample is digital silence."""


class Pipeline:
    """Runs a task on items with a model.

    UserError if the model does not support the task, or if the task needs choices and has none.
    """

    def __init__(self, reader: Reader, vocabulary: Vocabulary, task: Task) -> None:
        if task.has_boxes and not vocabulary.bins:
            raise UserError("this model has no bins for boxes")
        if task.has_boxes and task.image is None:
            raise UserError("a box is a place on a picture, and there is no picture")
        self.reader = reader
        self.vocabulary = vocabulary
        self.task = task
        self.processors = reader.processors(task)
        """Processors by modality; empty if the task only reads text."""
        self.labels = list(task.labels or ())
        self.trie: Trie | None = None
        """The choices, if the task has some."""
        self.longest = task.search.max_len
        """Number of tokens of the longest answer."""
        if task.answer == "choice":
            self.trie = task.trie(vocabulary)
            self.longest = self.trie.depth

    def stream(self, items: Iterable[Mapping[str, object]], batch_size: int) -> Iterator[Generated]:
        """The result of every item, see `Generator.stream`."""
        decoding = decode_ahead(_mappings(items), self._decode, ahead=2 * batch_size)
        with closing(decoding) as decoded:
            while batch := list(islice(decoded, batch_size)):
                yield from self._results(batch)

    def _name(self, index: int, item: Mapping[str, object]) -> str:
        """Name of an item for messages: that of its picture or sound, or else its number."""
        for modality in self.processors:
            value = item.get(modality)
            if value is not None:
                return describe(value)
        return f"item {index}"

    def _decode(self, item: Mapping[str, object]) -> DecodedItem:
        """Decode the sample of an item and tokenize its prompt. UserError if the task cannot be applied to it."""
        values: dict[str, Any] = dict(item)
        modality = self._modality(values)
        sample = None
        size = (1, 1)
        resized = (1, 1)
        if modality is not None:
            processor = self.processors[modality]
            sample = processor.decode(values[modality])
            if isinstance(processor, ImageProcessor) and self.task.has_boxes:
                size = processor.size_in_pixels(values["image"])
                resized = (processor.width, processor.height)
        source, prefix = self._prompt(values, size, resized)
        is_silent = modality == "audio" and sample is not None and bool(sample.min() == sample.max())
        return DecodedItem(
            ids=[BOS, *source, EOS],
            modality=modality,
            sample=sample,
            prefix=prefix,
            size=size,
            resized=resized,
            is_silent=is_silent,
        )

    def _modality(self, values: Mapping[str, object]) -> str | None:
        """The modality of an item; None if the task only reads text."""
        if not self.processors:
            return None
        modalities = [modality for modality in self.processors if values.get(modality) is not None]
        if len(modalities) != 1:
            raise UserError(f"the task needs one of {', '.join(self.processors)}, and the item has {len(modalities)}")
        return modalities[0]

    def _prompt(self, values: dict[str, Any], size: Size, resized: Size) -> tuple[list[int], list[int]]:
        """Ids for the encoder, without bos and eos, and those that the decoder starts with."""
        if "box" in self.task.fields:
            values = {**values, "box": self._words_of_box(values.get("box"), size, resized)}
        for name in self.task.fields:
            text = values.get(name)
            if isinstance(text, str) and not text.strip():
                raise UserError(f"the text for {{{name}}} is empty")
        source: list[int] = []
        prefix: list[int] = []
        if self.reader.reads_words:
            source, prefix = self.task.ids(self.vocabulary, values)
        num_read = len(source) + 2  # with bos and eos
        num_written = 1 + len(prefix) + self.longest
        if max(num_read, num_written) > self.reader.num_positions:
            raise UserError(
                f"its text has {len(source)} tokens and its answer up to {self.longest}; "
                f"the model has {self.reader.num_positions} places"
            )
        return source, prefix

    def _words_of_box(self, box: object, size: Size, resized: Size) -> str:
        """The names of the bins of a box in pixels of a picture."""
        if isinstance(box, np.ndarray | Tensor):
            box = box.tolist()
        if not _is_box(box):
            raise UserError(f"a box is [x0, y0, x1, y1] in pixels, x0 <= x1 and y0 <= y1, not {box!r}")
        return self.vocabulary.decode(self.vocabulary.bins_of(box, size, resized))

    def _results(
        self, batch: Sequence[tuple[int, Mapping[str, object], DecodedItem | Exception]]
    ) -> Iterator[Generated]:
        """The results of (index, item, decoded item or error), computed in groups of one modality."""
        outcomes: dict[int, Answers | Exception] = {}
        groups: dict[str | None, dict[int, DecodedItem]] = {}
        for index, _, decoded in batch:
            if isinstance(decoded, DecodedItem):
                groups.setdefault(decoded.modality, {})[index] = decoded
            else:
                outcomes[index] = decoded
        for group in groups.values():
            outcomes.update(zip(group, self._answers(list(group.values())), strict=True))
        for index, item, decoded in batch:
            name = self._name(index, item)
            answers = outcomes[index]
            if isinstance(answers, Exception):
                yield Generated(index, name, reason=reason_at(name, answers))
                continue
            if isinstance(decoded, DecodedItem) and decoded.is_silent:
                log.warning("%s: digital silence; what is written says nothing about a sound", name)
                answers = tuple(_unsure(answer) for answer in answers)
            yield Generated(index, name, answers)

    def _answers(self, group: Sequence[DecodedItem]) -> list[Answers]:
        """The answers of items of one modality; if the model refuses them together, they are computed one by one."""
        try:
            with torch.inference_mode():
                return self._compute(group)
        except torch.OutOfMemoryError as error:
            raise UserError(f"no memory for {len(group)} items at once; lower batch_size") from error
        except UserError as error:
            if len(group) == 1:
                return [error]
            answers = []
            for item in group:
                answers += self._answers([item])
            return answers

    def _compute(self, items: Sequence[DecodedItem]) -> list[Answers]:
        """The answers of items of one modality, in one batch."""
        modality = items[0].modality
        samples = [item.sample for item in items if item.sample is not None]
        encoded = self.reader.encode([item.ids for item in items], modality, samples)
        if self.trie is not None:
            return self._choose(items, encoded, self.trie)
        answers_by_item = self._search(items, encoded)
        uses_agreement = self.task.agreement or self.task.unsure_below
        if encoded.vectors is None or not uses_agreement:
            return answers_by_item
        ranked: list[Answers] = []
        for answers, vector in zip(answers_by_item, encoded.vectors, strict=True):
            if not isinstance(answers, UserError):
                answers = self._ranked(answers, vector, expect(modality, str))
            ranked.append(answers)
        return ranked

    def _choose(self, items: Sequence[DecodedItem], encoded: EncoderOutput, trie: Trie) -> list[Answers]:
        decoder = self.reader.decoder
        log_probs = score_answers(
            decoder.step,
            self._start(items, encoded),
            len(items),
            trie,
            prefixes=[item.prefix for item in items],
            device=decoder.token_embed.weight.device,
        )
        remedy = remedy_for_nan(decoder.token_embed.weight.dtype)
        return [(read_choice(row, self.labels, remedy),) for row in log_probs.tolist()]

    def _search(self, items: Sequence[DecodedItem], encoded: EncoderOutput) -> list[Answers]:
        decoder = self.reader.decoder
        hypotheses_by_item = search(
            decoder.step,
            self._start(items, encoded),
            len(items),
            self.task.search,
            prefixes=[item.prefix for item in items],
            allowed=_allowed_in_box(self.vocabulary) if self.task.answer == "box" else None,
            device=decoder.token_embed.weight.device,
        )
        answers = []
        for item, hypotheses in zip(items, hypotheses_by_item, strict=True):
            answers.append(self._read(hypotheses, item))
        return answers

    def _start(self, items: Sequence[DecodedItem], encoded: EncoderOutput) -> DecoderCache:
        """The state of the decoder before bos, with room for the longest prefix and answer."""
        longest_prefix = max(len(item.prefix) for item in items)
        return self.reader.decoder.start(encoded, longest_prefix + self.longest + 1)

    def _read(self, hypotheses: Sequence[Hypothesis], item: DecodedItem) -> Answers:
        if not hypotheses:
            dtype = self.reader.decoder.token_embed.weight.dtype
            return UserError(f"no answer has a finite score; {remedy_for_nan(dtype)}")
        answers = []
        for hypothesis in hypotheses:
            answer = read_answer(
                hypothesis,
                self.task,
                self.vocabulary,
                prefix=len(item.prefix),
                size=item.size,
                resized=item.resized,
            )
            answers.append(answer)
        return tuple(answers)

    def _ranked(self, answers: Sequence[Answer], vector: Tensor, modality: str) -> Answers:
        """Texts ranked by their score plus their cosine with the vector (E,) of the item, weighted as in the task."""
        texts = [expect(answer, Text) for answer in answers]
        cosines = expect(self.reader, FeatureReader).agreement(vector, [text.text for text in texts])
        threshold = self.task.unsure_below.get(modality, -1.0)
        compared = []
        for text, cosine in zip(texts, cosines, strict=True):
            compared.append(replace(text, agreement=cosine, is_sure=cosine >= threshold))
        return tuple(sorted(compared, key=self._rank))

    def _rank(self, text: Text) -> float:
        """Lower is better."""
        return -text.score - self.task.agreement * (text.agreement or 0.0)


def _mappings(items: Iterable[Mapping[str, object]]) -> Iterator[Mapping[str, object]]:
    for item in items:
        if not isinstance(item, Mapping):
            raise UserError(f'an item is a dictionary of fields, {{"image": ...}}, not {describe(item)}')
        yield item


def _allowed_in_box(vocabulary: Vocabulary) -> Allowed:
    """Four bins, then eos. (The released code allows words here too, which do not form a box.)"""
    bins = torch.tensor(vocabulary.bins)
    end = torch.tensor([EOS])

    def allowed(answer: Sequence[int]) -> Tensor:
        return bins if len(answer) < 4 else end

    return allowed


def _unsure(answer: Answer) -> Answer:
    return replace(answer, is_sure=False) if isinstance(answer, Text) else answer


def _is_box(box: object) -> "TypeGuard[Sequence[float]]":
    if not isinstance(box, Sequence) or len(box) != 4:
        return False
    if not all(isinstance(corner, Real) and isfinite(corner) for corner in box):
        return False
    x0, y0, x1, y1 = box
    return x0 <= x1 and y0 <= y1
