"""Task heads: from items to labels, an answer, a box, boxes, a choice, events or a mask (tasks.py).

Items are decoded ahead in threads and computed in batches; results come in order, failures as values.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from onepeace.embed.items import check_many, composed, name_of, reason_of
from onepeace.embed.stream import decode_ahead
from onepeace.embed.tasks import TASKS, Context
from onepeace.errors import UserError

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

CANDIDATE = "{text} answer: {candidate}"
"""Format that joins a question and a candidate answer into one text (released code)."""


@dataclass(frozen=True)
class Prediction:
    """The result of one item."""

    index: int
    """Index of the item among those given."""
    name: str
    result: dict[str, Any] | None
    """The entry of `TASKS` says its form; None if the item failed."""
    reason: str | None = None
    """Reason for the failure, on one line and without the item's name."""


class _Decoded(NamedTuple):
    """An item on its way into a batch."""

    samples: dict[str, list[Tensor]]
    """Samples by modality, one for each row."""
    rows: int
    context: Context


class Head:
    """A task head of a model, and how items become its input.

    Args:
        embedder: the model with its processors.
        name: an entry of model.heads; None if it has one only.

    Raises:
        UserError: no such head, or one whose task is not known.
    """

    def __init__(self, embedder: "Embedder", name: str | None = None):
        heads = embedder.module.config.heads
        if not heads:
            raise UserError("this model has no heads; give --labels, or a model with a head (docs/guide/finetune.md)")
        known = ", ".join(heads)
        if name is None and len(heads) != 1:
            raise UserError(f"this model has {len(heads)} heads: {known}")
        self.name = next(iter(heads)) if name is None else name
        if self.name not in heads:
            raise UserError(f"this model has no head {self.name!r}; its heads: {known}")
        self.embedder, self.config = embedder, heads[self.name]
        self.on, self.task = self.config["on"], self.config.get("task", "label")
        self.labels = self.config.get("labels") or [str(number) for number in range(self.config.get("num_classes", 0))]
        if self.task not in TASKS:
            raise UserError(f"model.heads.{self.name}.task is {self.task!r}; known: {', '.join(TASKS)}")

    def predict(self, items: Iterable[object], *, batch_size: int = 32, top: int = 5) -> Iterator[Prediction]:
        """The head's results of items, in their order.

        Args:
            items: a path or value of the modality that the head reads, or {"image": ..., "text": ...} by modality. A
                list stands for several pictures of one item (NLVR2). "candidates" are answers to choose from.
            batch_size: items in one pass, or their views where each has several.
            top: classes that are named.

        Raises:
            UserError: ``items`` is no list. What is wrong with an item is in its result.
        """
        computing = self.embedder.computing(self._predicted)
        count = computing.share(max(1, batch_size // self.embedder.processors[self.on].num_views))
        ahead = 2 * computing.workers * count
        with closing(decode_ahead(check_many(items), partial(self._read, top=top), ahead=ahead)) as decoded, computing:
            while block := list(islice(decoded, count)):
                yield from chain.from_iterable(found for _, found in computing.start(block))
            yield from chain.from_iterable(found for _, found in computing.rest())

    def _read(self, item: object, top: int) -> _Decoded:
        values: dict[str, Any] = dict(composed(item) or {self.on: item})
        processors = self.embedder.processors
        candidates = tuple(values.pop("candidates", ()))
        if unknown := [key for key in values if key not in processors]:
            raise UserError(f"this model has no {unknown[0]}; it has {', '.join(processors)}")
        if self.on not in values:
            raise UserError(f"the head {self.name} reads {self.on}, and the item has {', '.join(values) or 'nothing'}")
        if self.task == "choice":
            if len(candidates) < 2 or "text" not in values:
                raise UserError("a choice needs a text, the question, and two candidates or more")
            values["text"] = [CANDIDATE.format(text=values["text"], candidate=one) for one in candidates]
        size = (1, 1)
        if self.task in ("box", "boxes", "mask"):
            size = processors["image"].size_in_pixels(values["image"])  # type: ignore[attr-defined]
        samples = {}
        wanted = len(candidates) if self.task == "choice" else self.config.get("inputs", 1)
        wanted *= processors[self.on].num_views
        for key, value in values.items():
            several = value if isinstance(value, list) else [value]
            found = [view for one in several for view in processors[key].views(one)]
            if len(found) not in (1, wanted):
                raise UserError(f"the head {self.name} reads {wanted} of each kind, the item has {len(found)} of {key}")
            samples[key] = found * (wanted // len(found))
        seconds = getattr(self.embedder.module.adapters[self.on], "seconds_per_token", 0.0)
        return _Decoded(samples, wanted, Context(self.labels, size, candidates, seconds, top=top))

    def _predicted(self, block: "list[tuple[int, object, _Decoded | Exception]]") -> list[Prediction]:
        """The results of a block of items, computed in groups of the same modalities and rows."""
        found: dict[int, Prediction] = {}
        groups: dict[tuple[Any, ...], list[tuple[int, str, _Decoded]]] = {}
        for index, item, decoded in block:
            name = name_of(index, item)
            if isinstance(decoded, Exception):
                found[index] = Prediction(index, name, None, reason_of(name, decoded))
            else:
                groups.setdefault((tuple(decoded.samples), decoded.rows), []).append((index, name, decoded))
        for (keys, rows), members in groups.items():
            samples = {key: [one for *_, decoded in members for one in decoded.samples[key]] for key in keys}
            try:
                output, lengths = self._computed(samples, rows)
            except torch.OutOfMemoryError as error:
                raise UserError(f"no memory for {len(members)} items at once; lower batch_size") from error
            each, views = len(output) // len(members), self.embedder.processors[self.on].num_views
            for row, (index, name, decoded) in enumerate(members):
                context = replace(decoded.context, num_tokens=lengths[row * rows])
                own = output[row * each : (row + 1) * each].unflatten(0, (-1, views)).mean(1)
                found[index] = Prediction(index, name, TASKS[self.task](own, context))
        return [found[index] for index in sorted(found)]

    @torch.inference_mode()
    def _computed(self, samples: dict[str, list[Tensor]], rows: int) -> tuple[Tensor, list[int]]:
        """The head's output of items of so many rows each, and the lengths in tokens of what it reads, row by row."""
        module, inputs = self.embedder.module, {}
        for key, own in samples.items():
            inputs[key] = self.embedder.inputs(key, own)
            if key != "text" and self.config.get("inputs", 1) > 1:  # which of several pictures it is
                inputs[key]["type_ids"] = torch.arange(rows, device=self.embedder.device).repeat(len(own) // rows)
        lengths = module.adapters[self.on].token_lengths(inputs[self.on]).tolist()
        features = module.encode(module.stems(inputs), out_indices=module.head_blocks(self.name))
        return module.apply_head(self.name, features).float().cpu(), lengths
