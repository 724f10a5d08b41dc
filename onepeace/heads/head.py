"""Base class of heads."""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from onepeace.config import build
from onepeace.layers.features import Features


class Head(nn.Module):
    """Maps features of one or more passes to a task's output. A subclass defines ``Options`` and ``forward``; its
    constructor takes the width of the features and the options."""

    Options: ClassVar[type[Any]]
    """Dataclass of the options in ``ModelConfig.heads``."""

    @classmethod
    def from_options(cls, dim: int, num_heads: int, options: Mapping[str, Any], where: str) -> "Head":
        """Build the head for features of width ``dim``; the UserError for a wrong option begins with ``where``."""
        return cls(dim, build(cls.Options, options, where))

    def forward(self, *passes: Features) -> Tensor:
        raise NotImplementedError
