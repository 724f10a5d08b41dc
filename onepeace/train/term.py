"""The interface of a term of an objective: five hooks, Options, check, prepare, outputs and loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from onepeace.config.limits import Limits
from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train.passes import Passes

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.train.recipe import Recipe
    from onepeace.train.training_data import TrainingData


@dataclass(frozen=True, kw_only=True)
class TermOptions:
    """An entry of a recipe's ``objective``. Terms add fields of their own."""

    term: str
    """A key of TERMS."""
    name: str = ""
    """Name in the log and in messages; of the modalities or sources if it is not given, as "denoising/image+text"."""
    on: tuple[str, ...] = ()
    """Modalities; empty = all of the batch."""
    sources: tuple[str, ...] = ()
    """Names of the sources that the term learns from; empty = all that have its modalities."""
    weight: Annotated[float, Limits("a finite number", math.isfinite)] = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            about = "+".join(self.on or self.sources)
            object.__setattr__(self, "name", f"{self.term}/{about}" if about else self.term)
        if "." in self.name:
            raise UserError(f"name {self.name!r} has a dot; take another character")

    @property
    def where(self) -> str:
        """Place in the recipe, for messages."""
        return f"objective.{self.name}"

    def reads(self, source: str, present: Sequence[str]) -> bool:
        """Whether the term is computed on a batch of a source of this name and these modalities."""
        return source in (self.sources or (source,)) and set(self.on) <= set(present)

    def one_modality(self) -> str:
        """The modality of a term that has one; UserError if ``on`` lists none or several."""
        if len(self.on) != 1:
            raise UserError(f"{self.where}.on is {list(self.on)}; give one modality, as on: [image]")
        return self.on[0]


O = TypeVar("O", bound=TermOptions)  # noqa: E741


class Figure(NamedTuple):
    """A number that is logged and not minimised."""

    value: Tensor


class Term(nn.Module, Generic[O]):
    """One loss of an objective, in two halves.

    ``outputs`` makes passes over a part of the batch and keeps the few tensors the loss needs; ``loss`` is over those
    of the whole batch. So a batch larger than memory has the same loss: its parts are computed one after another, and
    once more in the backward pass (gradient caching). Parameters of the term's own learn without weight decay.

    Args:
        options: from the recipe.
        model: the model to train; a term keeps no reference to it.
        prepared: what `prepare` gave.
    """

    Options: ClassVar[type[TermOptions]]
    """The class of the options; the same as the type argument of Term."""
    uses_masks: ClassVar[bool] = False
    """Whether the term needs masked passes, and with them the model's masked decoder."""

    def __init__(self, options: O, model: Trained, prepared: Any = None):
        super().__init__()
        self.options = options
        self.step = 0
        """Number of the current step, from 1 on; whoever takes the steps sets it."""

    @classmethod
    def check(cls, options: O, recipe: "Recipe", config: "Config") -> None:
        """UserError for what does not fit the rest of the recipe, before any data is read."""

    @classmethod
    def prepare(cls, options: O, data: "TrainingData") -> Any:
        """Anything made of the data once, before training; the first process makes it before the others."""
        return None

    def outputs(self, passes: Passes) -> Any:
        """Tensors of a part of the batch, first axis items or tokens, in tuples and dictionaries as you like."""
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch, model: Trained) -> Mapping[str, Tensor | Figure]:
        """Losses by name, of the outputs of all parts joined; each is multiplied by the weight and added."""
        raise NotImplementedError


def check_projections(options: TermOptions, modalities: Sequence[str], config: "Config") -> None:
    """UserError if the model has no projection of one of the modalities."""
    if bare := [key for key in modalities if key not in config.model.projections]:
        raise UserError(f"{options.where} needs a projection of {bare[0]}; add it to model.projections")


def check_targets(options: TermOptions, targets: Sequence[str], recipe: "Recipe") -> None:
    """UserError if a source that feeds the term lacks one of the targets."""
    for source in recipe.feeding(options):
        if missing := [target for target in targets if target not in source.targets]:
            raise UserError(f"{options.where} reads the target {missing[0]}; add it to targets of {source.shards}")


def check_places(options: TermOptions, target: str, recipe: "Recipe") -> None:
    """UserError if an augmentation would move what a target says of places in the picture."""
    from onepeace.data.augment import make_augments

    for key, augment in make_augments(recipe.data.augment).items():
        if getattr(augment, "moves_pixels", False):
            raise UserError(
                f"{options.where}: data.augment.{key} would move what the target {target} is about; set crop_scale to "
                "[1, 1], and no flip or rand_augment"
            )
