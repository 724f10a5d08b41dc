"""Heads on token features. A new kind needs a class here and an entry in HEADS."""

from collections.abc import Mapping
from typing import Any

from onepeace.errors import UserError
from onepeace.extensions import HINT, Table

from .classifier import Classifier
from .head import Head

HEADS: Table[type[Head]] = Table(
    {
        "caption": "onepeace.generative.decoder.Caption",
        "classifier": Classifier,
    }
)

ABOUT = ("kind", "on", "blocks", "task", "labels")
"""Entries of a head's configuration that say what it reads and what its outputs mean; all others are its options."""

__all__ = [
    "ABOUT",
    "HEADS",
    "Classifier",
    "Head",
    "make_head",
]


def make_head(name: str, config: Mapping[str, Any], dim: int, num_heads: int) -> Head:
    """The head that an entry of ``ModelConfig.heads`` describes.

    Args:
        name: its key in ``ModelConfig.heads``, for messages.
        dim: width of the encoder's features.
        num_heads: number of the encoder's attention heads.

    Raises:
        UserError: the kind is unknown, an option is wrong, or the number of labels is not ``num_classes``.
    """
    where = f"model.heads.{name}"
    labels = config.get("labels")
    num_classes = config.get("num_classes")
    if labels is not None and len(labels) != num_classes:
        raise UserError(f"{where} has {len(labels)} labels and num_classes {num_classes}; they must be equal")
    kind = config["kind"]
    if kind not in HEADS:
        raise UserError(f"no kind {kind!r}; known: {', '.join(HEADS)}; {HINT}", where=where)
    options = {key: value for key, value in config.items() if key not in ABOUT}
    return HEADS[kind].from_options(dim, num_heads, options, where)
