"""Regression of a pretrained stem's features at the hidden positions."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.terms.term import Term, TermName


class Hidden(NamedTuple):
    """Of the hidden tokens of all items."""

    predictions: Tensor
    """(M, C)."""
    targets: Tensor
    """(M, C)."""


class Regression(Term):
    """``regression/image``: the item is encoded with tokens masked, and what the decoder says of a hidden one is mapped
    to what the stem's network, which sees the whole item, says there. Hidden tokens are never encoded, so the pass
    costs less than a full one.
    """

    uses_masks = True

    def __init__(self, name: TermName, options: Any, model: OnePeace, prepared: Any = None):
        super().__init__(name, options, model)
        (key,) = name.modalities
        try:
            stem = model.adapters[key].pretrained_stem()
        except ValueError as error:
            raise UserError(f"objective.{name.text}: {error}") from error
        self.head = nn.Linear(model.config.dim, stem.proj.in_features)

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        if len(name.modalities) != 1:
            raise UserError(f"objective.{name.text} is of one modality; write it as regression/image")
        cls.pairs(name, recipe)
        (key,) = name.modalities
        if getattr(recipe.mask.get(key), "unimodal", None) is None:
            raise UserError(f"objective.{name.text} needs mask.{key}.unimodal, the share of the masked tokens")

    def outputs(self, passes: Passes) -> Hidden:
        (key,) = self.name.modalities
        inputs, adapter = passes.batch.inputs[key], passes.model.adapters[key]
        with torch.no_grad():
            targets = inputs["features"] if "features" in inputs else adapter.stem_features(inputs)
            targets = targets.flatten(1, -2)
            places = torch.arange(targets.shape[1], device=targets.device)
            real = places < adapter.token_lengths(inputs).to(targets.device).unsqueeze(1)
        student = passes.unimodal_masked(key)[:, 1:]
        # A part of the batch may be shorter than what its masks were drawn for.
        masked = passes.batch.masks[key]["unimodal"].masked[:, 1 : student.shape[1] + 1] & real
        return Hidden(self.head(student[masked]), targets[masked].float())

    def loss(self, outputs: Hidden, batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        count = sum(parallel.gather_objects(len(outputs.targets))) / parallel.world_size() or 1
        return {self.name.text: losses.feature_regression(*outputs, count)}
