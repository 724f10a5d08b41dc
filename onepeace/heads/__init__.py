"""Heads on token features. A new kind needs a class here and an entry in HEADS."""

from collections.abc import Mapping
from typing import Any

from onepeace.errors import UserError

from .caption import Caption
from .classifier import Classifier
from .detection import Detection
from .frames import Frames
from .head import Head
from .pyramid import Pyramid
from .segmentation import Segmentation

HEADS: dict[str, type[Head]] = {
    "caption": Caption,
    "classifier": Classifier,
    "detection": Detection,
    "frames": Frames,
    "segmentation": Segmentation,
}

ABOUT = ("kind", "on", "blocks", "task", "labels")
"""Entries of a head's configuration that say what it reads and what its outputs mean; all others are its options."""

__all__ = [
    "ABOUT",
    "HEADS",
    "Caption",
    "Classifier",
    "Detection",
    "Frames",
    "Head",
    "Pyramid",
    "Segmentation",
    "make_head",
]


def make_head(name: str, config: Mapping[str, Any], dim: int, num_heads: int) -> Head:
    """The head that an entry of ``ModelConfig.heads`` describes."""
    options = {key: value for key, value in config.items() if key not in ABOUT}
    labels, outputs = config.get("labels"), config.get("num_classes")
    if labels is not None and len(labels) != outputs:
        raise UserError(f"model.heads.{name} has {len(labels)} labels and num_classes {outputs}; they must be equal")
    if config["kind"] not in HEADS:
        raise UserError(f"model.heads.{name}: no kind {config['kind']!r}; known: {', '.join(HEADS)}")
    return HEADS[config["kind"]].from_options(dim, num_heads, options, f"model.heads.{name}")
