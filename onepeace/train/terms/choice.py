"""One of several candidate answers, each scored on its own (AVQA)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train.supervised import Supervised, SupervisedOptions

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe


class Choice(Supervised[SupervisedOptions]):
    """Hinge loss; the target "choice" is the number of the right one of a sample's candidates.

    The source says by ``candidates`` how a question and a candidate become one text.
    """

    target = "choice"
    task = "choice"
    num_outputs = 1

    @classmethod
    def check(cls, options: SupervisedOptions, recipe: "Recipe", config: "Config") -> None:
        super().check(options, recipe, config)
        if bare := [source for source in recipe.feeding(options) if source.candidates is None]:
            raise UserError(
                f"{options.where} needs candidates of {bare[0].shards}, a sentence with {{text}} and {{candidate}}"
            )

    def head_loss(self, outputs: Tensor, batch: Batch, model: Trained) -> Tensor:
        scores = outputs.view(-1, batch.rows)
        for choice, key in zip(self.values(batch), batch.keys, strict=True):
            if not 0 <= choice < batch.rows:
                raise UserError(f"{key}: choice {choice} is not the number of one of {batch.rows} candidates")
        return losses.hinge(scores, torch.tensor(self.values(batch), device=scores.device))
