"""A classifier's names: its scores are soft targets for the similarities of items to the texts of its class names."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch, Inputs
from onepeace.data.features import by_name
from onepeace.data.sample import content_of
from onepeace.errors import UserError, need
from onepeace.model import OnePeace
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.teachers import TeacherTable, cached_features, check_teacher, file_name, item_reader
from onepeace.train.terms.term import Term, TermName, TermOptions


class Prepared(NamedTuple):
    """What is known before the first step."""

    scores: TeacherTable
    names: list[Inputs]
    """By template: the text input of every class name."""


class Outputs(NamedTuple):
    """Of the items that the classifier was asked about."""

    vectors: Tensor
    """(n, E), unit."""
    scores: Tensor
    """(n, K): probabilities of the classes."""


class Names(Term):
    """``names/image``. What a classifier knows of classes that no caption speaks of reaches pictures and words alike.

    In each step the classes it finds likeliest in the batch take part, written in one of the templates.
    """

    costs_a_step = True

    @dataclass(frozen=True, kw_only=True)
    class Options(TermOptions):
        teacher: str
        """A classifier of ImageNet's 1,000 classes: timm:NAME."""
        names: int = 128
        """Classes that take part in a step."""
        temperature: float = 1.0
        """Of the classifier's scores; above 1, more classes share in an item."""
        templates: tuple[str, ...] = ("{}", "a photo of a {}")
        cache: str | None = None
        """File of the scores; null = one in the run's folder."""

    options: Options

    def __init__(self, name: TermName, options: Any, model: OnePeace, prepared: Any = None):
        super().__init__(name, options, model)
        known: Prepared = prepared
        self.scores = (known.scores.features.float() / options.temperature).softmax(-1).half()
        self.row, self.names = known.scores.row, known.names

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        if len(name.modalities) != 1 or name.modalities == ("text",):
            raise UserError(f"objective.{name.text} is of one modality beside text; write it as names/image")
        cls.pairs(name, recipe)
        check_teacher(options.teacher, f"objective.{name.text}", name.modalities[0], "scores")
        if bare := [key for key in (*name.modalities, "text") if key not in config.model.projections]:
            raise UserError(f"objective.{name.text} needs a projection of {bare[0]}; add it to model.projections")

    @classmethod
    def prepare(cls, name, options, recipe, sources, processors) -> Prepared:
        (key,) = name.modalities
        own = f"{recipe.run.out}/{file_name(options.teacher)}-{key}-scores.safetensors"
        path = Path(os.path.expandvars(options.cache or own))
        samples = [sample for source in sources for sample in source.samples if key in sample.inputs]
        items = by_name(samples, lambda s: s.key, lambda s: s.inputs[key], "a classifier's scores")
        read = item_reader(key, processors[key])
        scores = cached_features(
            options.teacher, list(items), lambda n: read(content_of(items[n])), path, key, output="scores"
        )
        classes = need("open_clip", "teachers").IMAGENET_CLASSNAMES
        if scores.features.shape[1] != len(classes):
            found = f"{scores.features.shape[1]} classes"
            raise UserError(f"objective.{name.text}: {options.teacher} has {found}, and {len(classes)} names are known")
        text = processors["text"]
        return Prepared(
            scores,
            [text.collate([text.decode(template.format(one)) for one in classes]) for template in options.templates],
        )

    @classmethod
    def placeholder(cls, options, keys) -> Prepared:
        scores = TeacherTable({key: row for row, key in enumerate(keys)}, torch.zeros(len(keys), 1000, device="cpu"))
        ids = torch.full((1000, 8), 4, device="cpu")
        return Prepared(scores, [{"ids": ids} for _ in options.templates])

    def outputs(self, passes: Passes) -> Outputs:
        (key,) = self.name.modalities
        known = [(i, self.row[name]) for i, name in enumerate(passes.batch.keys) if name in self.row]
        items, rows = torch.tensor(known, dtype=torch.int64).reshape(-1, 2).unbind(1)
        vectors = passes.embedding(key)
        return Outputs(vectors[items.to(vectors.device)], self.scores[rows].float().to(vectors.device))

    def loss(self, outputs: Outputs, batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        scores, _ = parallel.gather_ragged(outputs.scores)
        likeliest = scores.amax(0) if len(scores) else scores.new_zeros(scores.shape[1])
        chosen = likeliest.topk(min(self.options.names, len(likeliest))).indices
        names = self.names[int(torch.randint(len(self.names), ()))]
        inputs = model.adapters["text"].take({key: x.to(chosen.device) for key, x in names.items()}, chosen)
        stems = model.stems({"text": inputs})
        texts = model.embed("text", model.encode(stems)["text"])
        scale = 1 / 0.07 if model.logit_scale is None else model.logit_scale.exp()
        count = max(len(scores), 1) / parallel.world_size()
        targets = outputs.scores[:, chosen]
        return {self.name.text: losses.soft_targets(outputs.vectors, texts, targets, scale, count)}
