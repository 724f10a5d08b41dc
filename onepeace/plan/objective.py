"""The objective of a recipe without its data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.plan.synthetic import FIRST_WORD_ID
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe
from onepeace.train.setup import build_objective
from onepeace.train.teachers import TeacherOptions, TeacherTable
from onepeace.train.term import TermOptions, TrainingData
from onepeace.train.terms.heads import Supervised

NOT_PLANNED = "a term of the objective makes its inputs of the words of the data, so the run cannot be planned"
NAME_TOKENS = 8
"""Tokens of a name of a class."""
TEACHER_OUTPUTS = {"features": 1024, "scores": 1000}
"""Widths of what teachers compute."""


class SyntheticData(TrainingData):
    """Stand-in for training data that returns tensors of the right size."""

    def __init__(self, recipe: Recipe, keys: Sequence[str]) -> None:
        super().__init__(recipe.data, (), {}, recipe.frozen_folder, None)
        self.keys = [*keys, "another"]  # a single row has no standard deviation

    @property
    def tokenizer(self) -> Any:
        raise UserError(NOT_PLANNED)

    def samples(self, options: TermOptions) -> Any:
        raise UserError(NOT_PLANNED)

    def texts(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"ids": torch.full((len(texts), NAME_TOKENS), FIRST_WORD_ID, device="cpu")}

    def features(self, teacher: TeacherOptions, modality: str, output: str = "features") -> TeacherTable:
        rows = {key: row for row, key in enumerate(self.keys)}
        return TeacherTable(rows, torch.zeros(len(rows), TEACHER_OUTPUTS[output], device="cpu"))


def synthetic_objective(recipe: Recipe, model: Trained, keys: Sequence[str]) -> Objective:
    """The objective of a recipe for items with these keys; a head's loss is replaced by the sum of its outputs."""
    objective = build_objective(recipe, model, SyntheticData(recipe, keys))
    for term in objective.terms.values():
        if isinstance(term, Supervised):
            term.loss = sum_of_outputs  # type: ignore[method-assign]
    return objective


def sum_of_outputs(outputs: Any, batch: Batch, model: Trained) -> dict[str, Tensor]:
    """Loss that needs no targets."""
    return {"loss": torch.stack([leaf.float().sum() for leaf in tree_leaves(outputs)]).sum()}
