"""What is heard when (DESED): each frame of a sound has the classes that sound in it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train.terms.supervised import Supervised


class Events(Supervised):
    """``events/audio``: binary cross entropy of each frame and class; the target "events" is a list of [onset, offset,
    class name], in seconds. The mean is over the frames of an item that are no padding, then over items."""

    target = "events"
    task = "events"

    @classmethod
    def labels_in(cls, value: Any) -> Iterable[str]:
        return [label for _, _, label in value]

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        super().check(name, options, recipe, config)
        for key in cls.pairs(name, recipe).values():
            for modality in name.modalities or key:
                augment = recipe.data.augment.get(modality, {})
                if moving := [option for option in ("shift", "mix") if augment.get(option)]:
                    raise UserError(
                        f"objective.{name.text}: data.augment.{modality}.{moving[0]} would move what is heard in "
                        "time; leave it out"
                    )

    def head_loss(self, outputs: Tensor, batch: Batch, model: OnePeace) -> Tensor:
        key = model.config.heads[self.options.head]["on"]
        adapter: Any = model.adapters[key]
        lengths = adapter.token_lengths(batch.inputs[key]).to(outputs.device)
        seconds = adapter.seconds_per_token
        target = self._frames(batch, outputs.shape[1], seconds).to(outputs.device)
        loss = F.binary_cross_entropy_with_logits(outputs.float(), target, reduction="none").sum(2)
        heard = torch.arange(outputs.shape[1], device=outputs.device) < lengths.unsqueeze(1)
        return ((loss * heard).sum(1) / lengths).mean()

    def _frames(self, batch: Batch, count: int, seconds: float) -> Tensor:
        """(B, L, C): 1 where a class sounds in at least half of a frame of ``seconds``."""
        target = torch.zeros(len(batch.keys), count, len(self.labels))
        middles = (torch.arange(count) + 0.5) * seconds
        for row, (events, key) in enumerate(zip(self.values(batch), batch.keys, strict=True)):
            for onset, offset, label in events:
                inside = (middles >= onset) & (middles < offset)
                if not inside.any():  # shorter than a frame: the one it falls into
                    inside = (middles - (onset + offset) / 2).abs() == (middles - (onset + offset) / 2).abs().min()
                target[row, inside, self.number_of(label, key)] = 1.0
        return target
