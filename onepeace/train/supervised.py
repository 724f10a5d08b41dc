"""Base of the terms that compare a task head's outputs with targets of the samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train.passes import Passes
from onepeace.train.term import Term, TermOptions, check_places, check_targets

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class SupervisedOptions(TermOptions):
    """Options of a term that trains a head."""

    head: str = "classifier"
    """The model's head, an entry of model.heads."""


S = TypeVar("S", bound=SupervisedOptions)


class Supervised(Term[S], Generic[S]):
    """The modalities are encoded together in one pass, which a head of the model reads.

    The head's ``labels`` name its classes. A subclass gives ``head_loss``.
    """

    Options = SupervisedOptions
    target: ClassVar[str]
    """The target of the samples that is read."""
    task: ClassVar[str]
    """Meaning of the head's outputs, in its configuration (onepeace/embed/tasks.py)."""
    num_outputs: ClassVar[int | None] = None
    """Outputs of the head, where they are no classes."""
    follows_pixels: ClassVar[bool] = False
    """Whether the target is a place in the picture, so that no crop or mirror may move it."""

    def __init__(self, options: S, model: Trained, prepared: Any = None):
        super().__init__(options, model)
        self.labels: Sequence[str] = model.config.heads[options.head].get("labels", ())
        self.number = {label: i for i, label in enumerate(self.labels)}

    @classmethod
    def check(cls, options: S, recipe: "Recipe", config: "Config") -> None:
        head = check_head(options, config, {"task": cls.task})
        for keys in recipe.fed(options).values():
            if head["on"] not in (options.on or keys):
                raise UserError(f"{options.where}: its head reads {head['on']}, which is not among the modalities")
        check_targets(options, [cls.target], recipe)
        if cls.follows_pixels:
            check_places(options, cls.target, recipe)

    def outputs(self, passes: Passes) -> Any:
        """Outputs of the head for a part of the batch, a row for each of its inputs."""
        return passes.head(self.options.head, self.options.on or tuple(passes.keys))

    def loss(self, outputs: Any, batch: Batch, model: Trained) -> Mapping[str, Tensor]:
        return {self.options.name: self.head_loss(outputs, batch, model)}

    def head_loss(self, outputs: Any, batch: Batch, model: Trained) -> Tensor:
        """The mean over the items of the batch."""
        raise NotImplementedError

    def values(self, batch: Batch) -> list[Any]:
        """The target of each item."""
        return batch.targets[self.target]

    def number_of(self, label: Any, key: str) -> int:
        """The class number of a label; UserError, naming the sample, for one that is no class of the head."""
        if label not in self.number:
            raise UserError(f"{key}: {label!r} is not among the {len(self.labels)} labels of the head")
        return self.number[label]


def check_head(options: SupervisedOptions, config: Any, wanted: Mapping[str, str]) -> Mapping[str, Any]:
    """The options of the term's head; UserError if there is none, or its fields are not as wanted."""
    heads = config.model.heads
    if options.head not in heads:
        raise UserError(f"{options.where} needs model.heads.{options.head}; known: {', '.join(heads) or 'none'}")
    head = heads[options.head]
    for field, value in wanted.items():
        if head.get(field) != value:
            found = f"it is {head.get(field)}"
            raise UserError(f"{options.where} needs model.heads.{options.head}.{field}: {value}; {found}")
    return head


def multi_hot(values: Sequence[Mapping[str, float]], number: Mapping[str, int]) -> Tensor:
    """(B, C) scores of classes by name; names that are no class count for nothing (VQA: rare answers)."""
    scores = torch.zeros(len(values), len(number))
    for row, named in enumerate(values):
        for name, score in named.items():
            if name in number:
                scores[row, number[name]] = float(score)
    return scores
