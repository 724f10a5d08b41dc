"""What every term of an objective has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from onepeace.data.batch import Batch
from onepeace.data.builder import label_of
from onepeace.errors import UserError
from onepeace.generative.tasks import Task
from onepeace.model import OnePeace
from onepeace.train.passes import Passes

if TYPE_CHECKING:
    from onepeace.config import Config
    from onepeace.data.reader import Source
    from onepeace.train.recipe import Recipe


class TermName(NamedTuple):
    """ "distillation:captions/image" is of the kind distillation, over image; "captions" tells it from others."""

    text: str
    kind: str
    modalities: tuple[str, ...]
    """As listed in the name; empty = all of the batch."""

    @classmethod
    def parse(cls, text: str) -> "TermName":
        head, _, listed = text.partition("/")
        kind = head.partition(":")[0]
        return cls(text, kind, tuple(key for key in listed.split("+") if key))

    @property
    def label(self) -> str:
        """What tells it from others of its kind; "" if it has none."""
        return self.text.partition("/")[0].partition(":")[2]

    def reads(self, label: str) -> bool:
        """Whether it is for batches of sources with this label."""
        return label in ("", self.label)


@dataclass(frozen=True, kw_only=True)
class TermOptions:
    """What every term can be given in a recipe."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise UserError(f"weight is {self.weight}, not a number")


class Term(nn.Module):
    """One loss of an objective, in two halves.

    ``outputs`` makes passes over a part of the batch and keeps the few tensors the loss needs; ``loss`` is over those
    of the whole batch. So a batch larger than memory has the same loss: its parts are computed one after another, and
    once more in the backward pass (gradient caching). Parameters of the term's own learn without weight decay.

    Args:
        name, options: from the recipe.
        model: the model to train; a term keeps no reference to it.
        prepared: what `prepare` gave.
    """

    Options: ClassVar[type[TermOptions]] = TermOptions
    uses_masks: ClassVar[bool] = False
    """Whether it needs masked passes, and with them the model's masked decoder."""
    min_modalities: ClassVar[int] = 1
    takes_mixed: ClassVar[bool] = False
    """Whether it can read a batch whose pictures are mixed with one another (``Batch.mixing``)."""
    costs_a_step: ClassVar[bool] = False
    """Whether a step costs it something however few the items are, as texts of its own."""

    def __init__(self, name: TermName, options: Any, model: OnePeace, prepared: Any = None):
        super().__init__()
        self.name, self.options = name, options
        self.step = 0
        """The number of the step that is computed, from 1 on; whoever takes the steps sets it."""

    @classmethod
    def check(cls, name: TermName, options: Any, recipe: "Recipe", config: "Config") -> None:
        """UserError for what does not fit the rest of the recipe, before any data is read."""

    @classmethod
    def prepare(
        cls, name: TermName, options: Any, recipe: "Recipe", sources: "Sequence[Source]", processors: Mapping[str, Any]
    ) -> Any:
        """What is made of the data once, before training; the first process makes it before the others."""
        return None

    @classmethod
    def placeholder(cls, options: Any, keys: Sequence[str]) -> Any:
        """In place of what `prepare` gives for items of these keys and captions, where only sizes matter (a plan)."""
        return None

    @classmethod
    def example(cls, options: Any, model: OnePeace) -> dict[str, Any]:
        """Targets that a sample could have, by name, where only sizes matter (a plan)."""
        return {}

    @classmethod
    def pairs(cls, name: TermName, recipe: "Recipe") -> dict[str, tuple[str, ...]]:
        """The recipe's pairs whose batches the term is computed on."""
        pairs = recipe.data.modalities
        fed = {pair: keys for pair, keys in pairs.items() if name.reads(label_of(pair)) and cls.fits(name, keys)}
        if not fed:
            raise UserError(
                f"objective.{name.text} is not a term that a pair of data.train can feed; there are {', '.join(pairs)}"
            )
        return fed

    @classmethod
    def fits(cls, name: TermName, present: Sequence[str]) -> bool:
        """Whether a batch of these modalities feeds the term."""
        return set(name.modalities) <= set(present) and len(present) >= cls.min_modalities

    def tasks(self) -> dict[str, Task]:
        """What a generative model is asked in training, by name; it is stored beside the weights."""
        return {}

    def outputs(self, passes: Passes) -> Any:
        """Tensors of a part of the batch, first axis items or tokens, in tuples and dictionaries as you like."""
        raise NotImplementedError

    def loss(self, outputs: Any, batch: Batch, model: OnePeace) -> dict[str, Tensor]:
        """Losses by name, of the outputs of all parts joined; each is multiplied by the weight and added."""
        raise NotImplementedError

    def figures(self, outputs: Any) -> dict[str, Tensor]:
        """More to log of the same outputs, by name: what is not minimised."""
        return {}
