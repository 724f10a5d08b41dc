"""Interface of the terms of an objective, with five hooks: Options, check, prepare, outputs and loss."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from onepeace.config import Config
from onepeace.data.augment import make_augments
from onepeace.data.batch import Batch
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.errors import UserError
from onepeace.model import Trained
from onepeace.train.passes import Passes
from onepeace.train.term_options import TermContext, TermOptions
from onepeace.train.training_data import TrainingData

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
    needs_whole_model: ClassVar[bool] = False
    """Whether the term runs parts of the model outside its passes, which a sharded model does not allow."""

    def __init__(self, options: O, model: Trained, prepared: Any = None):
        super().__init__()
        self.options = options
        self.step = 0
        """Number of the current step, from 1 on; set by the training loop."""

    @classmethod
    def check(cls, options: O, context: TermContext) -> None:
        """UserError for options that do not fit the rest of the recipe, before data is read."""

    @classmethod
    def prepare(cls, options: O, data: TrainingData) -> Any:
        """Data computed once before training, in the first process before the others."""
        return None

    def outputs(self, passes: Passes) -> Any:
        """Tensors of a part of the batch, with items or tokens as first axis, in tuples and dictionaries."""
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch, model: Trained) -> Mapping[str, Tensor | Logged]:
        """Losses by name from the joined outputs of all parts; each is multiplied by the weight and added."""
        raise NotImplementedError


def check_projections(options: TermOptions, modalities: Sequence[str], config: Config) -> None:
    """UserError if the model has no projection of one of the modalities."""
    for key in modalities:
        if key not in config.model.projections:
            raise UserError(f"{options.where} needs a projection of {key}; add it to model.projections")


def check_targets(options: TermOptions, targets: Sequence[str], sources: Sequence[SourceConfig]) -> None:
    """UserError if a source lacks one of the targets."""
    for source in sources:
        for target in targets:
            if target not in source.targets:
                raise UserError(f"{options.where} reads the target {target}; add it to targets of {source.shards}")


def check_places(options: TermOptions, target: str, data: DataConfig) -> None:
    """UserError if an augmentation would move the picture relative to a target such as boxes."""
    for key, augment in make_augments(data.augment).items():
        if augment.moves_pixels:
            raise UserError(
                f"data.augment.{key} would move the picture against its target {target}; set "
                "crop_scale to [1, 1], and no flip or rand_augment",
                where=options.where,
            )
