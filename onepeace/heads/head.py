"""What every kind of head can do."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from onepeace.config import build
from onepeace.layers.features import Features


class Head(nn.Module):
    """Features of one or more passes -> a task's output. A subclass gives ``Options`` and ``forward``, and is made of
    the width of the features and its options."""

    Options: ClassVar[type[Any]]
    """Dataclass of the options in ``ModelConfig.heads``."""
    out: nn.Linear
    """The output layer, of a head that ends with one."""

    @classmethod
    def from_options(cls, dim: int, num_heads: int, options: Mapping[str, Any], where: str) -> "Head":
        """The head for features of width ``dim``; UserError, beginning with ``where``, for a wrong option."""
        return cls(dim, build(cls.Options, options, where))

    def forward(self, *passes: Features) -> Tensor:
        raise NotImplementedError

    def reset_output(self, num_classes: int) -> nn.Linear:
        """Replace the output layer by one of ``num_classes`` and return it; the model initialises it."""
        weight = self.out.weight
        self.out = nn.Linear(self.out.in_features, num_classes, device=weight.device, dtype=weight.dtype)
        return self.out
