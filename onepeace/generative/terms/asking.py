"""A task put to the items of a batch: what a generative model reads, and what it should write."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from onepeace.config import Options, build, merge, to_plain
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.generative.answers import PUNCTUATION
from onepeace.generative.infilling import mask_words
from onepeace.generative.scoring import Trie
from onepeace.generative.tasks import FILE, Task, read_tasks
from onepeace.generative.vocabulary import Vocabulary
from onepeace.processors.tokenizer import BOS, EOS, PAD
from onepeace.train.folder import model_folder
from onepeace.train.term import TermOptions

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe


MATCH = "match"
"""A target that every item has: whether its text is its own, "yes" or "no"."""


def read_task(options: TermOptions, name: str, changes: Options, recipe: "Recipe") -> Task:
    """A task of the starting model, or a built-in one, with some of its fields changed. UserError if there is none."""
    source = recipe.start.source
    file = None if source is None else model_folder(source) / FILE
    rows = read_tasks(*([file] if file is not None and file.is_file() else []))
    if name not in rows and "prompt" not in changes:
        raise UserError(
            f"{options.where}.task {name!r} is not known, and changes give no prompt; known: {', '.join(rows)}"
        )
    row = to_plain(rows[name]) if name in rows else {}
    row = {**row, "choices": None} if "choices" in changes else row
    return build(Task, merge(row, changes), f"{options.where}.changes")


def check_caption_head(options: TermOptions, name: str, config: "Config") -> Mapping[str, Any]:
    """The options of a caption head that reads the term's modality; UserError if there is none."""
    head = config.model.heads.get(name)
    if head is None or head["kind"] != "caption":
        raise UserError(f"{options.where} needs model.heads.{name} of kind caption")
    if options.one_modality() not in head["on"]:
        raise UserError(f"{options.where}: its head reads {', '.join(head['on'])}, one at a time")
    return head


class Asked(NamedTuple):
    """Ids that are read and written of B items, padded on the right."""

    ids: Tensor
    """(B, L): sources with bos and eos."""
    written: Tensor
    """(B, T): what the decoder is fed, from bos on."""
    target: Tensor
    """(B, T): what should follow each; padding where it does not count."""
    weights: Tensor
    """(B,): how much each answer counts."""
    allowed: Tensor | None
    """(B, T, V) bool: the ids that compete; None: all."""

    def to(self, device: torch.device) -> "Asked":
        allowed = None if self.allowed is None else self.allowed.to(device)
        ids, written, target, weights = (x.to(device) for x in self[:4])
        return Asked(ids, written, target, weights, allowed)


class _Item(NamedTuple):
    """A sample of a batch."""

    key: str
    text: str
    """Caption as drawn."""
    targets: dict[str, Any]
    resized: tuple[int, int]
    """Width and height of its picture as the model reads it."""


@dataclass(frozen=True)
class Asking:
    """Puts a task to the items of a batch.

    Args:
        task: what is asked.
        vocabulary: of the model.
        num_positions: of the longest text that the model reads or writes.
        writes: "text", the caption, or the name of the target that is the answer.
        max_words: of the answer.
        weighted: whether an answer of several counts with its score.
        mask_share: of the words of {text}, see `mask_words`.
        swap: share of the items that get the text of another.
    """

    task: Task
    vocabulary: Vocabulary
    num_positions: int
    writes: str = "text"
    max_words: int | None = None
    weighted: bool = False
    mask_share: float = 0.0
    swap: float = 0.0

    def __call__(self, batch: Batch, trie: Trie | None = None) -> Asked:
        """The sources and answers of a batch.

        Args:
            trie: of the choices, which then are all that competes.

        Raises:
            UserError: an item without a field of the prompt, with an answer that is not allowed or too long; names it.
        """
        sources, prefixes, answers, weights = [], [], [], []
        for item in self._items(batch):
            try:
                source, prefix = self._question(item)
                answer, weight = self._answer(item)
            except UserError as error:
                raise UserError(f"{item.key}: {error}") from error
            longest = max(len(source) + 2, len(prefix) + len(answer) + 1)
            if longest > self.num_positions:
                raise UserError(f"{item.key}: {longest} tokens, and the model has {self.num_positions} places; lower "
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
                    allowed[row, len(prefix) + length, trie(row, answer[:length])] = True
        return Asked(_padded(sources), written, target, torch.tensor(weights), allowed)

    def sources(self, batch: Batch) -> Tensor:
        """(B, L): what is read, where nothing is known of the answers."""
        return _padded([[BOS, *self._question(item)[0], EOS] for item in self._items(batch)])

    def _items(self, batch: Batch) -> list[_Item]:
        shapes = [x.shape for inputs in batch.inputs.values() for x in inputs.values() if x.ndim == 4]
        height, width = shapes[0][2:] if shapes else (1, 1)
        texts, count = batch.captions, len(batch.captions)
        if self.swap and count > 1:
            swapped = torch.rand(count) < self.swap
            partners = (torch.arange(count) + torch.randint(1, count, (count,))) % count
            texts = [batch.captions[int(partners[i]) if swapped[i] else i] for i in range(count)]
        found = []
        for i, (key, text) in enumerate(zip(batch.keys, texts, strict=True)):
            targets = {name: values[i] for name, values in batch.targets.items()}
            targets[MATCH] = "yes" if text == batch.captions[i] else "no"
            found.append(_Item(key, text, targets, (width, height)))
        return found

    def _question(self, item: _Item) -> tuple[list[int], list[int]]:
        """The tokens of the source, and what the decoder is given before it answers."""
        values = {"text": mask_words(item.text, self.mask_share) if self.mask_share else item.text, **item.targets}
        if "box" in self.task.fields:
            values["box"] = self.vocabulary.decode(self._bins(item, values["box"]))
        return self.task.ids(self.vocabulary, values)

    def _answer(self, item: _Item) -> tuple[list[int], float]:
        """The tokens of the answer, none if the item has none, and how much they count."""
        value, labels, weight = {"text": item.text, **item.targets}.get(self.writes), self.task.labels, 1.0
        if value is None:
            return [], weight
        if self.writes == "box":
            return self._bins(item, value), weight
        if self.writes == "boxes":
            return self._objects(item), weight
        if isinstance(value, Mapping):
            known = {answer: score for answer, score in value.items() if labels is None or answer in labels}
            if not known:  # rare ones are no choices
                return [], weight
            value = max(known, key=known.__getitem__)
            weight = float(known[value]) if self.weighted else weight
        if labels is not None:
            if value not in labels:
                raise UserError(f"{value!r} is not among the {len(labels)} choices")
            return self.vocabulary.encode(f" {labels[value].strip()}"), weight
        text = value.translate(PUNCTUATION) if self.task.without_punctuation else value
        words = " ".join(text.split()[: self.max_words])
        return self.vocabulary.encode(f" {words}") if words else [], weight

    def _objects(self, item: _Item) -> list[int]:
        """Four bins and the words of each object."""
        pairs = zip(item.targets["boxes"], item.targets["box_labels"], strict=True)
        return [one for box, label in pairs for one in (*self._bins(item, box), *self.vocabulary.encode(f" {label}"))]

    def _bins(self, item: _Item, box: Sequence[float]) -> list[int]:
        """Bins of a box relative to the picture."""
        return self.vocabulary.bins_of(box, (1, 1), item.resized)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD)
