"""What terms share that compare a task head's outputs with targets of the samples."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from onepeace.data.augment import make_augments
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.train.passes import Passes
from onepeace.train.terms.term import Term, TermName, TermOptions


class Supervised(Term):
    """``kind/image+text``: the modalities are encoded together in one pass, which a head of the model reads.

    The head's ``labels`` name its classes. A subclass gives ``head_loss``.
    """

    target: ClassVar[str]
    """The target that is read unless the options name another."""
    task: ClassVar[str]
    """What the head's outputs mean afterwards, in its configuration (onepeace/embed/tasks.py)."""
    num_outputs: ClassVar[int | None] = None
    """Outputs of the head, where they are no classes."""
    follows_pixels: ClassVar[bool] = False
    """Whether the target is a place in the picture, so that no crop or mirror may move it."""

    @dataclass(frozen=True, kw_only=True)
    class Options(TermOptions):
        head: str = "classifier"
        """The model's head, an entry of model.heads."""
        target: str | None = None
        """The samples' target, where it is not the one the term is about."""

    options: Options

    def __init__(self, name: TermName, options: Any, model: OnePeace, prepared: Any = None):
        super().__init__(name, options, model)
        config = model.config.heads[options.head]
        self.labels: Sequence[str] = config.get("labels", ())
        self.number = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def target_of(cls, options: Any) -> str:
        """The target that the term reads."""
        return options.target or cls.target

    @classmethod
    def labels_in(cls, value: Any) -> Iterable[str]:
        """The labels in a sample's target, from which those of a head are collected."""
        return [value]

    @classmethod
    def example(cls, options: Any, model: OnePeace) -> dict[str, Any]:
        return {cls.target_of(options): cls.example_value(model.config.heads[options.head].get("labels", ()))}

    @classmethod
    def example_value(cls, labels: Sequence[str]) -> Any:
        """A target that a sample could have."""
        return labels[0]

    @classmethod
    def check(cls, name, options, recipe, config) -> None:
        where, target = f"objective.{name.text}", cls.target_of(options)
        heads = config.model.heads
        if options.head not in heads:
            known = ", ".join(heads) or "none"
            raise UserError(f"{where} needs model.heads.{options.head}; the model's heads: {known}")
        head = heads[options.head]
        if head.get("task") != cls.task:
            raise UserError(f"{where} needs model.heads.{options.head}.task: {cls.task}; it is {head.get('task')}")
        for pair, keys in cls.pairs(name, recipe).items():
            if head["on"] not in (name.modalities or keys):
                raise UserError(f"{where}: its head reads {head['on']}, which is not among the term's modalities")
            for source in recipe.data.train:
                if source.name == pair and target not in source.targets:
                    raise UserError(f"{where} reads the target {target}; add it to targets of {source.shards}")
        if cls.follows_pixels:
            for key, augment in make_augments(recipe.data.augment).items():
                if getattr(augment, "moves_pixels", False):
                    raise UserError(
                        f"{where}: data.augment.{key} would move what the target {target} is about; set crop_scale "
                        "to [1, 1], and no flip, rand_augment, mixup or cutmix"
                    )

    def outputs(self, passes: Passes) -> Tensor:
        """What the head makes of a part of the batch, a row for each of its inputs."""
        return passes.head(self.options.head, self.name.modalities or tuple(passes.keys))

    def loss(self, outputs: Tensor, batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        return {self.name.text: self.head_loss(outputs, batch, model)}

    def head_loss(self, outputs: Tensor, batch: Batch, model: OnePeace) -> Tensor:
        """The mean over the items of the batch."""
        raise NotImplementedError

    def values(self, batch: Batch) -> list[Any]:
        """The target of each item."""
        return batch.targets[self.target_of(self.options)]

    def number_of(self, label: Any, key: str) -> int:
        """The class number of a label; UserError, naming the sample, for one that is no class of the head."""
        if label not in self.number:
            raise UserError(f"{key}: {label!r} is not among the {len(self.labels)} labels of the head")
        return self.number[label]


def multi_hot(values: Sequence[Mapping[str, float]], number: Mapping[str, int]) -> Tensor:
    """(B, C) scores of classes by name; names that are no class count for nothing (VQA: rare answers)."""
    scores = torch.zeros(len(values), len(number))
    for row, named in enumerate(values):
        for name, score in named.items():
            if name in number:
                scores[row, number[name]] = float(score)
    return scores
