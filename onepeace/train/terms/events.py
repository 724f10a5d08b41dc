"""Events in a sound (DESED): each frame of a sound has the classes that sound in it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train.passes import Passes
from onepeace.train.supervised import Supervised, SupervisedOptions

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe


class Events(Supervised[SupervisedOptions]):
    """Binary cross entropy of each frame and class; the target "events" is a list of [onset, offset,
    class name], in seconds. The mean is over the frames of an item that are no padding, then over items."""

    target = "events"
    task = "events"

    @classmethod
    def check(cls, options: SupervisedOptions, recipe: "Recipe", config: "Config") -> None:
        super().check(options, recipe, config)
        for keys in recipe.fed(options).values():
            for modality in options.on or keys:
                augment = recipe.data.augment.get(modality, {})
                if moving := [option for option in ("shift", "mix") if augment.get(option)]:
                    raise UserError(
                        f"{options.where}: data.augment.{modality}.{moving[0]} would move what is heard in time; leave "
                        "it out"
                    )

    def outputs(self, passes: Passes) -> Tensor:
        """Logits (N, C) of all frames of all items, without padding."""
        logits, key = super().outputs(passes), self._on(passes.model)
        lengths = passes.model.adapters[key].token_lengths(passes.batch.inputs[key]).to(logits.device)
        return logits[torch.arange(logits.shape[1], device=logits.device) < lengths.unsqueeze(1)]

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        key = self._on(model)
        adapter: Any = model.adapters[key]
        lengths = adapter.token_lengths(batch.inputs[key]).cpu()
        target = torch.cat(
            [
                self._frames(events, name, int(length), adapter.seconds_per_token)
                for events, name, length in zip(self.values(batch), batch.keys, lengths, strict=True)
            ]
        )
        loss = F.binary_cross_entropy_with_logits(outputs.float(), target.to(outputs.device), reduction="none").sum(1)
        share = (1 / lengths).repeat_interleave(lengths).to(outputs.device)
        return (loss * share).sum() / len(lengths)

    def _on(self, model: Trained) -> str:
        return model.config.heads[self.options.head]["on"]

    def _frames(self, events: Sequence[tuple[float, float, str]], key: str, count: int, seconds: float) -> Tensor:
        """(L, C): 1 where a class sounds in the middle of a frame of ``seconds``."""
        target = torch.zeros(count, len(self.labels))
        middles = (torch.arange(count) + 0.5) * seconds
        for onset, offset, label in events:
            inside = (middles >= onset) & (middles < offset)
            if not inside.any():  # shorter than a frame: the nearest one
                inside = torch.arange(count) == (middles - (onset + offset) / 2).abs().argmin()
            target[inside, self.number_of(label, key)] = 1.0
        return target
