"""Finds a teacher by its name."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from onepeace.errors import UserError
from onepeace.train.teachers.packaged import efficientnet_lite0, minilm_l6
from onepeace.train.teachers.timm import timm_teacher

Teacher = Callable[[list[Any]], Tensor]
"""Items (pictures, texts) -> (n, F)."""

TEACHERS: dict[str, Callable[[], Teacher]] = {
    "efficientnet-lite0": efficientnet_lite0,
    "minilm-l6-v2": minilm_l6,
}
"""By their whole name."""
LIBRARIES: dict[str, Callable[[str, str], Teacher]] = {"timm": timm_teacher}
"""By what stands before a colon; (what stands after it, "features" or "scores") -> teacher."""


def check_teacher(name: str, where: str) -> None:
    """UserError that begins with ``where`` if there is no such teacher, or none that could be."""
    library, _, network = name.partition(":")
    if name not in TEACHERS and not (library in LIBRARIES and network):
        known = ", ".join([*TEACHERS, *(f"{library}:NAME" for library in LIBRARIES)])
        raise UserError(f"{where}: teacher {name!r} is not known; known: {known}")


def make_teacher(name: str, output: str = "features") -> Teacher:
    """The teacher ``efficientnet-lite0``, ``timm:NAME``...; output "scores": of its classes, instead of features."""
    check_teacher(name, "distillation")
    if name in TEACHERS:
        if output != "features":
            raise UserError(f"the teacher {name} has no {output}")
        return TEACHERS[name]()
    library, _, network = name.partition(":")
    return LIBRARIES[library](network, output)
