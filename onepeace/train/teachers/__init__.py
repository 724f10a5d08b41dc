"""Outside teachers, by what a recipe says of them. A term draws our vectors towards what they say of the training
items, which is computed once, before the first step, and read from disk afterwards."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from onepeace.config.reader import nearest
from onepeace.errors import UserError
from onepeace.train.teachers.networks import Teacher, timm_teacher, transformers_teacher

TEACHERS: dict[str, Callable[[str, str, str], Teacher]] = {
    "timm": timm_teacher,
    "transformers": transformers_teacher,
}
"""By library: (name of a model, modality, "features" or "scores") -> teacher."""


@dataclass(frozen=True)
class TeacherOptions:
    """The ``teacher`` of a term in a recipe."""

    library: str
    """A key of TEACHERS."""
    name: str
    """A model of the library: its name there, a repository of the Hub, or a folder."""
    reads: Literal["items", "captions"] = "items"
    """Subject that the teacher is asked about: the items, or their captions."""

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"


def check_teacher(teacher: TeacherOptions, where: str) -> None:
    """UserError that begins with ``where`` if there is no such library; nothing is loaded."""
    if teacher.library not in TEACHERS:
        known = nearest(teacher.library, TEACHERS)
        raise UserError(f"{where}.teacher.library {teacher.library!r} is not known; {known}")


def make_teacher(teacher: TeacherOptions, modality: str, output: str = "features") -> Teacher:
    """The teacher of items of a modality; output "scores": of its classes, instead of features.

    Raises:
        UserError: it cannot be had, does not read the modality, or has no such output.
    """
    return TEACHERS[teacher.library](teacher.name, modality, output)
