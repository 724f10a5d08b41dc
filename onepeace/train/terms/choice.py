"""One of several candidate answers, each scored on its own (AVQA)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train.terms.supervised import Supervised


class Choice(Supervised):
    """``choice/audio+text``: hinge loss; the target "choice" is the number of the right one of a sample's candidates.

    The source says by ``candidates`` how a question and a candidate become one text.
    """

    target = "choice"
    task = "choice"
    num_outputs = 1

    @dataclass(frozen=True, kw_only=True)
    class Options(Supervised.Options):
        margin: float = 1.0

    options: Options

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        super().check(name, options, recipe, config)
        for pair in cls.pairs(name, recipe):
            for source in recipe.data.train:
                if source.name == pair and source.candidates is None:
                    raise UserError(f"objective.{name.text} needs candidates of {source.shards}, a sentence with "
                                    "{text} and {candidate}")  # fmt: skip

    def head_loss(self, outputs: Tensor, batch: Batch, model: OnePeace) -> Tensor:
        scores = outputs.view(-1, batch.rows)
        for choice, key in zip(self.values(batch), batch.keys, strict=True):
            if not 0 <= choice < batch.rows:
                raise UserError(f"{key}: choice {choice} is not the number of one of {batch.rows} candidates")
        return losses.hinge(scores, torch.tensor(self.values(batch), device=scores.device), self.options.margin)
