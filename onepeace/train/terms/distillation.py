"""Distillation: CLS features are drawn towards an outside teacher's features of the item, or of its caption."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.teachers import TeacherOptions, TeacherTable, check_teacher
from onepeace.train.term import Term, TermOptions

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe
    from onepeace.train.training_data import TrainingData


class Features(NamedTuple):
    """Features of the items that the teacher knows."""

    student: Tensor
    """(n, F)."""
    teacher: Tensor
    """(n, F)."""


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(TermOptions):
    teacher: TeacherOptions
    scale: float = 10.0


class Distillation(Term[DistillationOptions]):
    """See onepeace/losses/distillation.py and onepeace/train/teachers; ``prepared`` is the teacher's table."""

    Options = DistillationOptions

    def __init__(self, options: DistillationOptions, model: Trained, prepared: TeacherTable):
        super().__init__(options, model)
        features = prepared.features.float()
        # Pooled network features share a large mean; without it cosines tell pictures apart.
        self.features = (features - features.mean(0)) / (features.std(0) + 1e-6)
        self.row = prepared.row
        self.head = nn.Linear(model.config.dim, features.shape[1])

    @classmethod
    def check(cls, options: DistillationOptions, recipe: "Recipe", config: "Config") -> None:
        if options.one_modality() == "text" and options.teacher.reads != "captions":
            raise UserError(f"{options.where}: a teacher of text reads captions; set teacher.reads: captions")
        check_teacher(options.teacher, options.where)

    @classmethod
    def prepare(cls, options: DistillationOptions, data: "TrainingData") -> TeacherTable:
        return data.features(options.teacher, "text" if options.teacher.reads == "captions" else options.one_modality())

    def outputs(self, passes: Passes) -> Features:
        batch = passes.batch
        # Items the teacher never saw (two clips mixed, say) take no part.
        names = batch.captions if self.options.teacher.reads == "captions" else batch.keys
        items, rows = known_rows(names, self.row)
        vectors = passes.unimodal(self.options.one_modality()).cls
        return Features(self.head(vectors[items.to(vectors.device)]), self.features[rows].to(vectors.device))

    def loss(self, outputs: Features, batch: Batch, model: Trained) -> dict[str, Tensor]:
        keys, _ = parallel.gather_ragged(outputs.teacher)
        count = max(len(keys), 1) / parallel.world_size()
        return {self.options.name: losses.distillation(*outputs, self.options.scale, keys, count)}


def known_rows(names: list[str], row: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Places (n,) of the names that have a row, and their rows (n,)."""
    known = [(i, row[name]) for i, name in enumerate(names) if name in row]
    items, rows = torch.tensor(known, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return items, rows
