"""Application of a task to a batch: inputs and targets of a generative model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace.config import Config, Options, build, merge, to_plain
from onepeace.config.limits import Share
from onepeace.data.batch import Batch
from onepeace.device import upload
from onepeace.errors import UserError
from onepeace.generative.answers import PUNCTUATION
from onepeace.generative.infilling import mask_words
from onepeace.generative.scoring import Trie
from onepeace.generative.tasks import FILE, Task, read_tasks
from onepeace.generative.vocabulary import Vocabulary
from onepeace.losses import real_targets
from onepeace.processors.tokenizer import BOS, EOS, PAD
from onepeace.train.term import TermOptions
from onepeace.train.terms.heads import check_head

MATCH = "match"
"""Target that every item has: "yes" if its text is its own, else "no"."""


def read_task(options: TermOptions, name: str, changes: Options, start_folder: Path | None) -> Task:
    """A task of the starting model, or a built-in one, with some fields changed. UserError if it is unknown."""
    rows = read_tasks(None if start_folder is None else start_folder / FILE)
    if name not in rows and "prompt" not in changes:
        raise UserError(
            f"{options.where}.task {name!r} is not known, and changes give no prompt; known: {', '.join(rows)}"
        )
    row = to_plain(rows[name]) if name in rows else {}
    row = {**row, "choices": None} if "choices" in changes else row
    return build(Task, merge(row, changes), f"{options.where}.changes")


def check_caption_head(options: Any, config: Config) -> Mapping[str, Any]:
    """The options of a caption head that reads the term's modality; UserError if there is none."""
    head = check_head(options, config, "kind", "caption")
    if options.one_modality() not in head["on"]:
        raise UserError(f"{options.where}: its head reads {', '.join(head['on'])}, one at a time")
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
    """(N,) int64: the targets that are no padding, in the flattened (B, T)."""
    num_tokens: int
    """Number of ids and of written ids that are no padding."""
    allowed: Tensor | None
    """(B, T, V) bool: the ids that compete; None = all."""

    def to(self, device: torch.device) -> "TaskBatch":
        return TaskBatch(
            ids=upload(self.ids, device),
            written=upload(self.written, device),
            target=upload(self.target, device),
            weights=upload(self.weights, device),
            real=upload(self.real, device),
            num_tokens=self.num_tokens,
            allowed=None if self.allowed is None else upload(self.allowed, device),
        )


@dataclass(frozen=True, kw_only=True)
class AskingOptions:
    """Options of the answers, and of changes to the captions of a batch."""

    writes: str = "text"
    """The answer: text (the caption), or a target: label, answers (the one with the highest score), box, boxes (with
    their labels), or another target that is a text."""
    max_words: int | None = None
    """Maximum number of words of an answer, which is cut after them; null = no limit."""
    weighted: bool = False
    """Whether the log-probabilities of an answer are multiplied by its score, as released."""
    mask_share: Share = 0.0
    """Share of the words of {text} that are masked in the prompt (infilling)."""
    swap: Share = 0.0
    """Share of the items whose {text} is replaced by that of another item of the batch. The target match is then "no",
    otherwise "yes"."""


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
        sources, prefixes, answers, weights = [], [], [], []
        shapes = [x.shape for inputs in batch.inputs.values() for x in inputs.values() if x.ndim == 4]
        height, width = shapes[0][2:] if shapes else (1, 1)
        for key, values in zip(batch.keys, self._values(batch), strict=True):
            try:
                source, prefix = self._question(values, (width, height))
                answer, weight = self._answer(values, (width, height))
            except UserError as error:
                raise UserError(f"{key}: {error}") from error
            longest = max(len(source) + 2, len(prefix) + len(answer) + 1)
            if longest > self.num_positions:
                raise UserError(f"{key}: {longest} tokens, and the model has {self.num_positions} places; lower "
                                "max_words")  # fmt: skip
            sources.append([BOS, *source, EOS])
            prefixes.append(prefix)
            answers.append(answer)
            weights.append(weight)
        rows = list(zip(prefixes, answers, strict=True))
        written = _padded([[BOS, *prefix, *answer] for prefix, answer in rows])
        target = _padded([[PAD] * len(prefix) + ([*answer, EOS] if answer else [PAD]) for prefix, answer in rows])
        allowed = None
        if trie is not None:
            allowed = torch.zeros(*written.shape, len(self.vocabulary), dtype=torch.bool)
            for row, (prefix, answer) in enumerate(rows):
                for length in range(len(answer) + 1):
                    allowed[row, len(prefix) + length, trie(answer[:length])] = True
        return TaskBatch(
            ids=_padded(sources),
            written=written,
            target=target,
            weights=torch.tensor(weights),
            real=real_targets(target),
            num_tokens=sum(map(len, sources)) + int((written != PAD).sum()),
            allowed=allowed,
        )

    def _values(self, batch: Batch) -> list[dict[str, Any]]:
        """The caption and the targets of each item by name, including the target match."""
        texts, count = batch.captions, len(batch.captions)
        if self.options.swap and count > 1:
            swapped = torch.rand(count) < self.options.swap
            partners = (torch.arange(count) + torch.randint(1, count, (count,))) % count
            texts = [batch.captions[int(partners[i]) if swapped[i] else i] for i in range(count)]
        match = ["yes" if text == own else "no" for text, own in zip(texts, batch.captions, strict=True)]
        targets = {**batch.targets, MATCH: match}
        return [{"text": text, **{name: of[i] for name, of in targets.items()}} for i, text in enumerate(texts)]

    def _question(self, values: dict[str, Any], size: tuple[int, int]) -> tuple[list[int], list[int]]:
        """The tokens of the source, and those that the decoder starts with."""
        values = dict(values)
        if self.options.mask_share:
            values["text"] = mask_words(values["text"], self.options.mask_share)
        if "box" in self.task.fields:
            values["box"] = self.vocabulary.decode(self._bins(values["box"], size))
        return self.task.ids(self.vocabulary, values)

    def _answer(self, values: Mapping[str, Any], size: tuple[int, int]) -> tuple[list[int], float]:
        """The tokens of the answer, none if the item has none, and its weight."""
        writes, labels, weight = self.options.writes, self.task.labels, 1.0
        value = values.get(writes)
        if value is None:
            return [], weight
        if writes == "box":
            return self._bins(value, size), weight
        if writes == "boxes":  # four bins and the words of each object
            pairs = zip(value, values["box_labels"], strict=True)
            encode = self.vocabulary.encode
            return [one for box, label in pairs for one in (*self._bins(box, size), *encode(f" {label}"))], weight
        if isinstance(value, Mapping):
            known = {answer: score for answer, score in value.items() if labels is None or answer in labels}
            if not known:  # rare answers are not among the choices
                return [], weight
            value = max(known, key=known.__getitem__)
            weight = float(known[value]) if self.options.weighted else weight
        if labels is not None:
            if value not in labels:
                raise UserError(f"{value!r} is not among the {len(labels)} choices")
            return self.vocabulary.encode(f" {labels[value].strip()}"), weight
        text = value.translate(PUNCTUATION) if self.task.without_punctuation else value
        words = " ".join(text.split()[: self.options.max_words])
        return self.vocabulary.encode(f" {words}") if words else [], weight

    def _bins(self, box: Sequence[float], size: tuple[int, int]) -> list[int]:
        """Bins of a box in relative coordinates, for a picture that the model reads at this width and height."""
        return self.vocabulary.bins_of(box, (1, 1), size)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)
