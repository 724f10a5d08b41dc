"""Sigmoid loss for every pair of the batch's modalities (SigLIP), each encoded alone."""

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from onepeace import losses
from onepeace.config.reader import Finite, Positive
from onepeace.data.batch import Batch
from onepeace.model import Trained
from onepeace.train import parallel
from onepeace.train.term import TrainingData
from onepeace.train.terms.contrastive import Pairs, PairsOptions


@dataclass(frozen=True, kw_only=True)
class SigmoidOptions(PairsOptions):
    scale: Positive = 10.0
    """Scale of the cosines (``model.logit_scale``) at the start, unless that is another model."""
    bias: Finite = -10.0
    """Bias of the logits at the start: nearly all pairs are wrong (open_clip's numbers)."""


class Sigmoid(Pairs[SigmoidOptions]):
    """Whether two items belong together, for all pairs of all processes; see onepeace/losses/sigmoid.py.

    ``prepared`` is whether training starts from random weights.
    """

    Options = SigmoidOptions

    def __init__(self, options: SigmoidOptions, model: Trained, prepared: Any = None):
        super().__init__(options, model)
        self.bias = nn.Parameter(torch.tensor(options.bias))
        if prepared and model.logit_scale is not None:
            nn.init.constant_(model.logit_scale, math.log(options.scale))

    @classmethod
    def prepare(cls, options: SigmoidOptions, data: TrainingData) -> bool:
        return data.start_folder is None

    def loss(self, outputs: dict[str, Tensor], batch: Batch, model: Trained) -> dict[str, Tensor]:
        scale = self.scale_of(batch, model)
        by_name = {}
        for a, b in combinations(outputs, 2):
            parts = []
            for turn, others in enumerate(parallel.around(outputs[b])):
                parts.append(losses.sigmoid(outputs[a], others, scale, self.bias, paired=turn == 0))
            name = self.options.name if len(self.options.on) == 2 else f"{self.options.name}/{a}+{b}"
            by_name[name] = torch.stack(parts).sum()
        return by_name
