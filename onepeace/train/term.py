"""Interface of the terms of an objective, with five hooks: Options, check, prepare, outputs and loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from onepeace.config.limits import Range
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
    """Options of an entry of a recipe's ``objective``, to which terms add their own."""

    term: str
    """Key of TERMS."""
    name: str = ""
    """Name in the log and in messages; default: from the modalities or sources, as "denoising/image+text"."""
    on: tuple[str, ...] = ()
    """Modalities; empty = all of the batch."""
    sources: tuple[str, ...] = ()
    """Names of the sources to learn from; empty = all that have the modalities."""
    weight: Annotated[float, Range("a finite number", math.isfinite)] = 1.0

    def __post_init__(self) -> None:
        if not self.name:
            about = "+".join(self.on or self.sources)
            object.__setattr__(self, "name", f"{self.term}/{about}" if about else self.term)
        if "." in self.name:
            raise UserError(f"name {self.name!r} has a dot; take another character")

    @property
    def where(self) -> str:
        """Path in the recipe, for messages."""
        return f"objective.{self.name}"

    def reads(self, source: str, present: Sequence[str]) -> bool:
        """Whether the term is computed for batches of a source with this name and these modalities."""
        return source in (self.sources or (source,)) and set(self.on) <= set(present)

    def one_modality(self) -> str:
        """The only modality of ``on``; UserError if it lists none or several."""
        if len(self.on) != 1:
            raise UserError(f"{self.where}.on is {list(self.on)}; give one modality, as on: [image]")
        return self.on[0]


O = TypeVar("O", bound=TermOptions)  # noqa: E741


class Logged(NamedTuple):
    """Number that is logged but not minimised."""

    value: Tensor


class Term(nn.Module, Generic[O]):
    """Loss of an objective, computed in two steps.

    ``outputs`` runs passes over a part of the batch and keeps the few tensors that the loss needs; ``loss`` is computed
    from those of the whole batch. A batch larger than memory therefore has the same loss, part by part (gradient
    caching). Parameters of the term itself train without weight decay.

    Args:
        options: options from the recipe.
        model: the model to train; a term keeps no reference to it.
        prepared: result of `prepare`.
    """

    Options: ClassVar[type[TermOptions]]
    """Class of the options, equal to the type argument of Term."""
    uses_masks: ClassVar[bool] = False
    """Whether the term needs masked passes and the model's masked decoder."""

    def __init__(self, options: O, model: Trained, prepared: Any = None):
        super().__init__()
        self.options = options
        self.step = 0
        """Number of the current step, from 1 on; set by the training loop."""

    @classmethod
    def check(cls, options: O, recipe: "Recipe", config: "Config") -> None:
        """UserError for options that do not fit the rest of the recipe, before data is read."""

    @classmethod
    def prepare(cls, options: O, data: "TrainingData") -> Any:
        """Data computed once before training, in the first process before the others."""
        return None

    def outputs(self, passes: Passes) -> Any:
        """Tensors of a part of the batch, with items or tokens as first axis, in tuples and dictionaries."""
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch, model: Trained) -> Mapping[str, Tensor | Logged]:
        """Losses by name from the joined outputs of all parts; each is multiplied by the weight and added."""
        raise NotImplementedError


def check_projections(options: TermOptions, modalities: Sequence[str], config: "Config") -> None:
    """UserError if the model has no projection of one of the modalities."""
    if bare := [key for key in modalities if key not in config.model.projections]:
        raise UserError(f"{options.where} needs a projection of {bare[0]}; add it to model.projections")


def check_targets(options: TermOptions, targets: Sequence[str], recipe: "Recipe") -> None:
    """UserError if a source of the term lacks one of the targets."""
    for source in recipe.feeding(options):
        if missing := [target for target in targets if target not in source.targets]:
            raise UserError(f"{options.where} reads the target {missing[0]}; add it to targets of {source.shards}")


def check_places(options: TermOptions, target: str, recipe: "Recipe") -> None:
    """UserError if an augmentation would move the picture relative to a target such as boxes."""
    from onepeace.data.augment import make_augments

    for key, augment in make_augments(recipe.data.augment).items():
        if getattr(augment, "moves_pixels", False):
            raise UserError(
                f"{options.where}: data.augment.{key} would move the picture against its target {target}; set "
                "crop_scale to [1, 1], and no flip or rand_augment"
            )
