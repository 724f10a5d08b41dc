"""Application of a task to a batch: inputs and targets of a generative model, and texts with masked words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace.config import Config, Options, build, to_plain
from onepeace.config.reader import Count, Share
from onepeace.data.batch import Batch
from onepeace.device import upload
from onepeace.errors import UserError
from onepeace.generative.scoring import Trie
from onepeace.generative.tasks import PUNCTUATION, Task, changed, read_tasks
from onepeace.generative.vocabulary import Size, Vocabulary
from onepeace.hub.folder import TASKS
from onepeace.processors.tokenizer import BOS, EOS, PAD
from onepeace.train.term import TermOptions
from onepeace.train.terms.heads import check_head

MATCH = "match"
"""Target that every item has: "yes" if its text is its own, else "no"."""


def read_task(options: TermOptions, name: str, changes: Options, start_folder: Path | None) -> Task:
    """A task of the starting model, or a built-in one, with some fields changed. UserError if it is unknown."""
    tasks = read_tasks(None if start_folder is None else start_folder / TASKS)
    section: Options = {}
    if name in tasks:
        section = to_plain(tasks[name])
    elif "prompt" not in changes:
        raise UserError(
            f"{options.where}.task {name!r} is not known, and changes give no prompt; known: {', '.join(tasks)}"
        )
    return build(Task, changed(section, changes), f"{options.where}.changes")


def check_caption_head(options: Any, config: Config) -> Mapping[str, Any]:
    """The options of a caption head that reads the term's modality; UserError if there is none."""
    head = check_head(options, config, "kind", "caption")
    if options.one_modality() not in head["on"]:
        raise UserError(f"its head reads {', '.join(head['on'])}, one at a time", where=options.where)
    return head


class TaskBatch(NamedTuple):
    """Input and output ids of B items, padded on the right."""

    ids: Tensor
    """(B, L): sources with bos and eos."""
    written: Tensor
    """(B, T): input of the decoder, from bos on."""
    target: Tensor
    """(B, T): the token that should follow each; padding where the loss ignores it."""
    weights: Tensor
    """(B,): weight of each answer."""
    real: Tensor
    """(N,) int64: the targets that are not padding, in the flattened (B, T)."""
    num_tokens: int
    """Number of ids and of written ids that are not padding."""
    allowed: Tensor | None
    """(B, T, V) bool: the ids that compete; None = all."""

    def to(self, device: torch.device) -> "TaskBatch":
        moved: dict[str, Any] = self._asdict()
        for name, value in moved.items():
            if isinstance(value, Tensor):
                moved[name] = upload(value, device)
        return TaskBatch(**moved)


@dataclass(frozen=True, kw_only=True)
class AskingOptions:
    """Options of the answers, and of changes to the captions of a batch."""

    writes: str = "text"
    """The answer: text (the caption), or a target: label, answers (the one with the highest score), box, boxes (with
    their labels), or another target that is a text."""
    max_words: Count | None = None
    """Maximum number of words of an answer, which is cut after them; null = no limit."""
    weighted: bool = False
    """Whether the log-probabilities of an answer are multiplied by its score, as released."""
    mask_share: Share = 0.0
    """Share of the words of {text} that are masked in the prompt (infilling)."""
    swap: Share = 0.0
    """Share of the items whose {text} is replaced by that of another item of the batch. The target match is then "no",
    otherwise "yes"."""


class _AskedItem(NamedTuple):
    """The tokens of one item."""

    source: list[int]
    """With bos and eos."""
    prefix: list[int]
    """Tokens that the decoder starts with, after bos."""
    answer: list[int]
    """Without eos; empty if the item has no answer."""
    weight: float

    def written(self) -> list[int]:
        """Input of the decoder."""
        return [BOS, *self.prefix, *self.answer]

    def target(self) -> list[int]:
        """The token that should follow each written one; padding where the loss ignores it."""
        if not self.answer:
            return [PAD] * (len(self.prefix) + 1)
        return [*[PAD] * len(self.prefix), *self.answer, EOS]


@dataclass(frozen=True)
class Asking:
    """Applies a task to the items of a batch.

    Args:
        task: the task.
        vocabulary: vocabulary of the model.
        num_positions: maximum number of tokens that the model reads or writes.
    """

    task: Task
    vocabulary: Vocabulary
    num_positions: int
    options: AskingOptions

    def __call__(self, batch: Batch, trie: Trie | None = None) -> TaskBatch:
        """The sources and answers of a batch.

        Args:
            trie: trie of the choices, if only they compete.

        Raises:
            UserError: an item lacks a field of the prompt, or its answer is not allowed or too long; names the item.
        """
        size = _picture_size(batch)
        items = []
        for key, values in zip(batch.keys, self._values(batch), strict=True):
            try:
                items.append(self._ask(values, size))
            except UserError as error:
                raise UserError(f"{error}", where=key) from error
        ids = _padded([item.source for item in items])
        written = _padded([item.written() for item in items])
        target = _padded([item.target() for item in items])
        num_read = sum(len(item.source) for item in items)
        allowed = None
        if trie is not None:
            allowed = torch.zeros(*written.shape, len(self.vocabulary), dtype=torch.bool)
            _allow(allowed, items, trie)
        return TaskBatch(
            ids=ids,
            written=written,
            target=target,
            weights=torch.tensor([item.weight for item in items]),
            real=real_targets(target),
            num_tokens=num_read + int((written != PAD).sum()),
            allowed=allowed,
        )

    def _ask(self, values: Mapping[str, Any], size: Size) -> _AskedItem:
        """The tokens of an item. UserError if they are too many."""
        source, prefix = self._question(values, size)
        answer, weight = self._answer(values, size)
        num_tokens = max(len(source) + 2, 1 + len(prefix) + len(answer))  # with bos and eos
        if num_tokens > self.num_positions:
            raise UserError(f"{num_tokens} tokens, and the model has {self.num_positions} places; lower max_words")
        return _AskedItem([BOS, *source, EOS], prefix, answer, weight)

    def _values(self, batch: Batch) -> list[dict[str, Any]]:
        """The caption and the targets of each item by name, including the target match."""
        values_by_item = []
        for i, caption in enumerate(self._swapped(batch.captions)):
            values = {name: target[i] for name, target in batch.targets.items()}
            match = "yes" if caption == batch.captions[i] else "no"
            values_by_item.append({**values, "text": caption, MATCH: match})
        return values_by_item

    def _swapped(self, captions: Sequence[str]) -> Sequence[str]:
        """The captions, some of them replaced by that of another item."""
        count = len(captions)
        if not self.options.swap or count < 2:
            return captions
        is_swapped = (torch.rand(count) < self.options.swap).tolist()
        distances = torch.randint(1, count, (count,))
        partners = ((torch.arange(count) + distances) % count).tolist()
        swapped = list(captions)
        for i, partner in enumerate(partners):
            if is_swapped[i]:
                swapped[i] = captions[partner]
        return swapped

    def _question(self, values: Mapping[str, Any], size: Size) -> tuple[list[int], list[int]]:
        """The tokens of the source, and those that the decoder starts with."""
        fields = dict(values)
        if self.options.mask_share:
            fields["text"] = mask_words(values["text"], self.options.mask_share)
        if "box" in self.task.fields:
            fields["box"] = self.vocabulary.decode(self._bins(values["box"], size))
        return self.task.ids(self.vocabulary, fields)

    def _answer(self, values: Mapping[str, Any], size: Size) -> tuple[list[int], float]:
        """The tokens of the answer, none if the item has none, and its weight."""
        value = values.get(self.options.writes)
        if value is None:
            return [], 1.0
        if self.options.writes == "box":
            return self._bins(value, size), 1.0
        if self.options.writes == "boxes":
            return self._objects(value, values["box_labels"], size), 1.0
        if isinstance(value, Mapping):
            return self._best_answer(value)
        return self._words(value), 1.0

    def _objects(self, boxes: Sequence[Sequence[float]], labels: Sequence[str], size: Size) -> list[int]:
        """Four bins and the words of each object."""
        ids = []
        for box, label in zip(boxes, labels, strict=True):
            ids += self._bins(box, size)
            ids += self.vocabulary.encode(f" {label}")
        return ids

    def _best_answer(self, scores: Mapping[str, float]) -> tuple[list[int], float]:
        """The answer with the highest score, and its weight; none if no answer is among the choices (rare ones)."""
        candidates = dict(scores)
        labels = self.task.labels
        if labels is not None:
            candidates = {answer: score for answer, score in scores.items() if answer in labels}
        if not candidates:
            return [], 1.0
        best = max(candidates, key=candidates.__getitem__)
        weight = float(candidates[best]) if self.options.weighted else 1.0
        return self._words(best), weight

    def _words(self, text: str) -> list[int]:
        """The tokens of a choice, or of a text cut to `max_words`."""
        labels = self.task.labels
        if labels is not None:
            if text not in labels:
                raise UserError(f"{text!r} is not among the {len(labels)} choices")
            return self.vocabulary.encode(f" {labels[text].strip()}")
        if self.task.without_punctuation:
            text = text.translate(PUNCTUATION)
        words = " ".join(text.split()[: self.options.max_words])
        if not words:
            return []
        return self.vocabulary.encode(f" {words}")

    def _bins(self, box: Sequence[float], size: Size) -> list[int]:
        """Bins of a box in relative coordinates, for a picture that the model reads at this width and height."""
        return self.vocabulary.bins_of(box, (1, 1), size)


def _picture_size(batch: Batch) -> Size:
    """Width and height of the pictures of a batch; (1, 1) if it has none."""
    for inputs in batch.inputs.values():
        for tensor in inputs.values():
            if tensor.ndim == 4:
                height, width = tensor.shape[2:]
                return width, height
    return 1, 1


def _allow(allowed: Tensor, items: Sequence[_AskedItem], trie: Trie) -> None:
    """Mark, in (B, T, V), the ids that continue a choice after each token of the answers."""
    for row, item in enumerate(items):
        for length in range(len(item.answer) + 1):
            position = len(item.prefix) + length
            allowed[row, position, trie(item.answer[:length])] = True


def real_targets(target: Tensor) -> Tensor:
    """(N,) int64: the targets (B, T) that are not padding, in the flattened (B, T)."""
    return (target != PAD).flatten().nonzero().squeeze(1)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    tensors = list(map(torch.tensor, rows))
    return pad_sequence(tensors, batch_first=True, padding_value=PAD)


MASK = "<mask>"
MEAN_LENGTH = 3.0
"""Mean length of a span in words (Poisson). An empty span inserts a `<mask>` between two words."""


def mask_words(text: str, share: float) -> str:
    """Replace random spans of words with one `<mask>` each (fairseq's rules), drawn by torch's random generator.

    Args:
        share: share of the words to mask; less where spans overlap.
    """
    words = text.split()
    lengths = _span_lengths(math.ceil(share * len(words)))
    spans = [length for length in lengths if length > 0]
    starts = torch.randperm(len(words))[: len(spans)].tolist()
    deleted: set[int] = set()  # words of a span after the first one, which becomes the mask
    for start, length in zip(starts, spans, strict=True):
        deleted.update(range(start + 1, start + length))
    first_words = set(starts)
    masked = []
    for position, word in enumerate(words):
        if position not in deleted:
            masked.append(MASK if position in first_words else word)
    num_insertions = len(lengths) - len(spans)
    for _ in range(num_insertions):
        masked.insert(int(torch.randint(len(masked) + 1, ())), MASK)
    return " ".join(masked)


def _span_lengths(num_words: int) -> list[int]:
    """Random lengths of spans, 0 included, with this sum."""
    lengths: list[int] = []
    remaining = num_words
    while remaining > 0:
        length = min(int(torch.poisson(torch.tensor(MEAN_LENGTH))), remaining)
        lengths.append(length)
        remaining -= length
    return lengths
