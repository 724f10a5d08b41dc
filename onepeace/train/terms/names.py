"""A classifier's names: its scores are soft targets for the similarities of items to the texts of its class names."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from onepeace import losses
from onepeace.data.batch import Batch, Inputs
from onepeace.errors import UserError, expect, need
from onepeace.model import Encoder, Trained
from onepeace.train import parallel
from onepeace.train.passes import Passes
from onepeace.train.teachers import TeacherOptions, TeacherTable, check_teacher
from onepeace.train.term import Term, TermOptions, check_projections
from onepeace.train.terms.distillation import known_rows

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe
    from onepeace.train.training_data import TrainingData


class Prepared(NamedTuple):
    """Scores and names that are made before the first step."""

    scores: TeacherTable
    names: list[Inputs]
    """By template: the text input of every class name."""


class Outputs(NamedTuple):
    """Vectors and scores of the items that the classifier was asked about."""

    vectors: Tensor
    """(n, E), unit."""
    scores: Tensor
    """(n, K): probabilities of the classes."""


@dataclass(frozen=True, kw_only=True)
class NamesOptions(TermOptions):
    teacher: TeacherOptions
    """A classifier of ImageNet's 1,000 classes, of timm."""
    names: int = 128
    """Classes that take part in a step."""
    templates: tuple[str, ...] = ("{}", "a photo of a {}")


class Names(Term[NamesOptions]):
    """Knowledge of a classifier about classes that no caption speaks of, for pictures and words alike.

    In each step the classes it finds likeliest in the batch take part, written in one of the templates.
    """

    Options = NamesOptions

    def __init__(self, options: NamesOptions, model: Trained, prepared: Prepared):
        super().__init__(options, model)
        self.scores = prepared.scores.features.float().softmax(-1).half()
        self.row, self.names = prepared.scores.row, prepared.names

    @classmethod
    def check(cls, options: NamesOptions, recipe: "Recipe", config: "Config") -> None:
        if (key := options.one_modality()) == "text":
            raise UserError(f"{options.where}.on is [text]; give a modality beside text")
        check_teacher(options.teacher, options.where)
        check_projections(options, (key, "text"), config)

    @classmethod
    def prepare(cls, options: NamesOptions, data: "TrainingData") -> Prepared:
        scores = data.features(options.teacher, options.one_modality(), "scores")
        classes = need("open_clip", "teachers").IMAGENET_CLASSNAMES
        if scores.features.shape[1] != len(classes):
            found = f"{scores.features.shape[1]} classes"
            raise UserError(f"{options.where}: {options.teacher} has {found}, and {len(classes)} names are known")
        return Prepared(scores, [data.texts([form.format(one) for one in classes]) for form in options.templates])

    def outputs(self, passes: Passes) -> Outputs:
        items, rows = known_rows(passes.batch.keys, self.row)
        vectors = passes.embedding(self.options.one_modality())
        return Outputs(vectors[items.to(vectors.device)], self.scores[rows].float().to(vectors.device))

    def loss(self, outputs: Outputs, batch: Batch, model: Trained) -> dict[str, Tensor]:
        scores, _ = parallel.gather_ragged(outputs.scores)
        likeliest = scores.amax(0) if len(scores) else scores.new_zeros(scores.shape[1])
        chosen = likeliest.topk(min(self.options.names, len(likeliest))).indices
        names = self.names[int(torch.randint(len(self.names), ()))]
        inputs = model.adapters["text"].take({key: x.to(chosen.device) for key, x in names.items()}, chosen)
        encoder = expect(model, Encoder)
        texts = encoder.embed("text", encoder.encode(encoder.stems({"text": inputs}))["text"])
        scale = 1 / 0.07 if model.logit_scale is None else model.logit_scale.exp()
        count = max(len(scores), 1) / parallel.world_size()
        targets = outputs.scores[:, chosen]
        return {self.options.name: losses.soft_targets(outputs.vectors, texts, targets, scale, count)}
