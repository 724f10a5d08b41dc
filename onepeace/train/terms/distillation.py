"""Distillation: CLS features are drawn towards an outside teacher's features of the item, or of its caption."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onepeace import losses
from onepeace.data.batch import Batch
from onepeace.data.features import by_name
from onepeace.data.sample import content_of
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train import parallel
from onepeace.train.captions import captions_of
from onepeace.train.passes import Passes
from onepeace.train.teachers import TeacherTable, cached_features, check_teacher, file_name, item_reader
from onepeace.train.terms.term import Term, TermName, TermOptions


class Features(NamedTuple):
    """Of the items that the teacher knows."""

    student: Tensor
    """(n, F)."""
    teacher: Tensor
    """(n, F)."""


class Distillation(Term):
    """``distillation/image``; see onepeace/losses/distillation.py and onepeace/train/teachers.

    ``prepared`` is the teacher's table of features; its path is ``cache``, or in the run's folder the names of teacher
    and modality, so that terms which ask one teacher of the same items share it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(TermOptions):
        teacher: str
        """By name, or as timm:NAME, transformers:NAME or open_clip:NAME/PRETRAINED (recipes/README.md)."""
        scale: float = 10.0
        by: str = "keys"
        """What the teacher reads: keys, the item; captions, its caption."""
        cache: str | None = None
        """File of the teacher's features; null = one in the run's folder."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.by not in ("keys", "captions"):
                raise UserError(f"by {self.by!r} is not known; known: keys, captions")

    options: Options

    def __init__(self, name: TermName, options: Any, model: OnePeace, prepared: Any = None):
        super().__init__(name, options, model)
        table: TeacherTable = prepared
        features = table.features.float()
        known = features[list(table.row.values())]  # the rows of items that cannot be decoded are nan
        # Pooled network features share a large mean; without it cosines tell pictures apart.
        self.features = (features - known.mean(0)) / (known.std(0) + 1e-6)
        self.row = table.row
        self.head: nn.Module = nn.Linear(model.config.dim, features.shape[1])

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        if len(name.modalities) != 1:
            number = len(name.modalities)
            raise UserError(f"objective.{name.text} has {number} modalities; give it one, as distillation/image")
        cls.pairs(name, recipe)
        if name.modalities == ("text",) and options.by != "captions":
            raise UserError(f"objective.{name.text}: a teacher of text reads captions; set by: captions")
        check_teacher(options.teacher, f"objective.{name.text}", cls.read_modality(name, options))

    @staticmethod
    def read_modality(name: TermName, options: "Distillation.Options") -> str:
        """What the teacher reads: text, or the term's modality."""
        return "text" if options.by == "captions" else name.modalities[0]

    @classmethod
    def prepare(cls, name, options, recipe, sources, processors) -> TeacherTable:
        key = cls.read_modality(name, options)
        own = f"{recipe.run.out}/{file_name(options.teacher)}-{key}.safetensors"
        path = Path(os.path.expandvars(options.cache or own))
        if key == "text":
            captions = {text for source in sources for text in captions_of(recipe.data, source.samples)}
            # By length: the teacher pads to the longest of a batch.
            names = sorted(captions, key=lambda text: (len(text), text))
            return cached_features(options.teacher, names, lambda text: text, path, key)
        samples = [sample for source in sources for sample in source.samples if key in sample.inputs]
        items = by_name(samples, lambda s: s.key, lambda s: s.inputs[key], "a teacher's features")
        read = item_reader(key, processors[key])
        return cached_features(options.teacher, list(items), lambda name: read(content_of(items[name])), path, key)

    @classmethod
    def placeholder(cls, options, keys) -> TeacherTable:
        names = [*keys, "another"]  # a single one has no standard deviation
        return TeacherTable({name: row for row, name in enumerate(names)}, torch.zeros(len(names), 1024, device="cpu"))

    def outputs(self, passes: Passes) -> Features:
        (key,) = self.name.modalities
        names = passes.batch.captions if self.options.by == "captions" else passes.batch.keys
        # Items the teacher never saw (two clips mixed, say) take no part.
        known = [(i, self.row[name]) for i, name in enumerate(names) if name in self.row]
        items, rows = torch.tensor(known, dtype=torch.int64).reshape(-1, 2).unbind(1)
        vectors = self.student(passes, key)
        return Features(self.head(vectors[items.to(vectors.device)]), self.features[rows].to(vectors.device))

    def student(self, passes: Passes, key: str) -> Tensor:
        """What of an item is drawn towards the teacher's features, (B, D)."""
        return passes.unimodal(key).cls

    def loss(self, outputs: Features, batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        keys, _ = parallel.gather_ragged(outputs.teacher)
        count = max(len(keys), 1) / parallel.world_size()
        return {self.name.text: losses.distillation(*outputs, self.options.scale, keys, count)}
