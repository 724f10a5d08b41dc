"""Task heads: from items to labels, an answer, a box, boxes, a choice, events or a mask (tasks.py).

Items are decoded ahead in threads and computed in batches; results come in order, failures as values.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from onepeace.embed.items import check_many, composed, name_of, reason_of
from onepeace.embed.stream import decode_ahead
from onepeace.embed.tasks import TASKS, Context
from onepeace.errors import UsageError, UserError

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
    """Return value of the head's function in `TASKS`; None if the item failed."""
    reason: str | None = None
    """Reason for the failure, on one line and without the item's name."""


Decoded: TypeAlias = tuple[dict[str, list[Tensor]], Context]
"""Samples of an item by modality, one for each row of the head's input, and facts about the item."""


class Predictor:
    """A task head of a model, with the preparation of its input.

    Args:
        embedder: the model with its processors.
        name: name of a head; None if the model has only one whose task is in `TASKS`.

    Raises:
        UserError: no such head.
    """

    def __init__(self, embedder: "Embedder", name: str | None = None):
        heads = {key: head for key, head in embedder.module.config.heads.items() if head.get("task", "label") in TASKS}
        if not heads:
            raise UserError("this model has no heads to classify with; give --labels without --text, or another model")
        self.name = next(iter(heads)) if name is None and len(heads) == 1 else str(name)
        if self.name not in heads:
            problem = "several heads" if name is None else f"no head {name!r}"
            raise UsageError(f"this model has {problem}; choose one of {', '.join(heads)} (--head)")
        self.embedder, self.config = embedder, heads[self.name]
        self.on, self.task = self.config["on"], self.config.get("task", "label")
        self.labels = self.config.get("labels") or [str(number) for number in range(self.config.get("num_classes", 0))]

    def predict(self, items: Iterable[object], *, batch_size: int = 32, top: int = 5) -> Iterator[Prediction]:
        """Yield the head's results for the items, in order.

        Args:
            items: paths or values of the modality that the head reads, or dictionaries by modality {"image": ...,
                "text": ...}. A list is several pictures of one item (NLVR2); "candidates" are answers to choose from.
            batch_size: items per forward pass, or views where each item has several.
            top: number of classes in a result.

        Raises:
            UserError: ``items`` is a single item, or no memory for a batch. Errors of items are in their results.
        """
        computing = self.embedder.computing(self._predicted)
        count = computing.share(max(1, batch_size // self.embedder.processors[self.on].num_views))
        ahead = 2 * computing.workers * count
        with closing(decode_ahead(check_many(items), partial(self._read, top=top), ahead=ahead)) as decoded, computing:
            while block := list(islice(decoded, count)):
                yield from chain.from_iterable(found for _, found in computing.start(block))
            yield from chain.from_iterable(found for _, found in computing.rest())

    def _read(self, item: object, top: int) -> Decoded:
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
        has_places = self.task in ("box", "boxes", "mask")
        if has_places and "image" not in values:
            raise UserError(f"the head {self.name} returns places on a picture, and the item has none")
        size = processors["image"].size_in_pixels(values["image"]) if has_places else (1, 1)  # type: ignore[attr-defined]
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
        return samples, Context(self.labels, size, candidates, seconds, top=top)

    @torch.inference_mode()
    def _predicted(self, block: "list[tuple[int, object, Decoded | Exception]]") -> list[Prediction]:
        """Results of a block of items, computed in groups with the same modalities and numbers of rows."""
        module, several = self.embedder.module, self.config.get("inputs", 1) > 1
        views = self.embedder.processors[self.on].num_views
        found: dict[int, Prediction] = {}
        groups: dict[tuple[tuple[str, int], ...], list[tuple[int, str, Decoded]]] = {}
        for index, item, decoded in block:
            name = name_of(index, item)
            if isinstance(decoded, Exception):
                found[index] = Prediction(index, name, None, reason_of(name, decoded))
            else:
                kind = tuple((key, len(own)) for key, own in decoded[0].items())
                groups.setdefault(kind, []).append((index, name, decoded))
        for kind, members in groups.items():
            inputs = {}
            try:
                for key, rows in kind:
                    inputs[key] = self.embedder.inputs(key, [one for *_, (own, _) in members for one in own[key]])
                    if key != "text" and several:  # which of several pictures it is
                        inputs[key]["type_ids"] = torch.arange(rows, device=self.embedder.device).repeat(len(members))
                lengths = module.adapters[self.on].token_lengths(inputs[self.on])[::rows].tolist()
                features = module.encode(module.stems(inputs), out_indices=module.head_blocks(self.name))
                outputs = module.apply_head(self.name, features).float().cpu().chunk(len(members))
            except torch.OutOfMemoryError as error:
                raise UserError(f"no memory for {len(members)} items at once; lower batch_size") from error
            for (index, name, (_, context)), output, length in zip(members, outputs, lengths, strict=True):
                own = output.unflatten(0, (-1, views)).mean(1)
                found[index] = Prediction(index, name, TASKS[self.task](own, replace(context, num_tokens=length)))
        return [found[index] for index in sorted(found)]
