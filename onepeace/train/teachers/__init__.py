"""Outside teachers, by what a recipe says of them. A term draws our vectors towards what they say of the training
items, which is computed once, before the first step, and read from disk afterwards."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from onepeace.config.reader import nearest
from onepeace.errors import UserError
from onepeace.train.teachers.items import Teacher
from onepeace.train.teachers.open_clip import open_clip_teacher
from onepeace.train.teachers.packaged import efficientnet_lite0, minilm_l6
from onepeace.train.teachers.timm import timm_teacher
from onepeace.train.teachers.transformers import transformers_teacher

TEACHERS: dict[str, Callable[[], Teacher]] = {
    "efficientnet-lite0": efficientnet_lite0,
    "minilm-l6-v2": minilm_l6,
}
"""Teachers of no library, by name."""
LIBRARIES: dict[str, Callable[[str, str, str], Teacher]] = {
    "timm": timm_teacher,
    "transformers": transformers_teacher,
    "open_clip": open_clip_teacher,
}
"""By name: (model, modality, "features" or "scores") -> teacher."""
READS: dict[str, tuple[str, ...]] = {
    "efficientnet-lite0": ("image",),
    "minilm-l6-v2": ("text",),
    "timm": ("image",),
    "open_clip": ("text", "image"),
}
"""The modalities that a teacher, or those of a library, can read; all where it is not listed."""
FEATURES_ONLY = frozenset(["transformers", "open_clip"])
"""Libraries of teachers without scores, as every one of TEACHERS is."""


@dataclass(frozen=True)
class TeacherOptions:
    """The ``teacher`` of a term in a recipe."""

    name: str
    """A key of TEACHERS, or a model of the library: its name there, a repository of the Hub, or a folder."""
    library: str | None = None
    """A key of LIBRARIES."""
    weights: str | None = None
    """Tag or file of the weights of an open_clip model."""
    reads: Literal["items", "captions"] = "items"
    """Subject that the teacher is asked about: the items, or their captions."""

    def __str__(self) -> str:
        return ("" if self.library is None else f"{self.library}:") + self.model

    @property
    def model(self) -> str:
        """Name with weights, as the library's function takes it."""
        return self.name if self.weights is None else f"{self.name}/{self.weights}"


def check_teacher(teacher: TeacherOptions, where: str, modality: str, output: str = "features") -> None:
    """UserError that begins with ``where`` if there is no such teacher, or none that could be; nothing is loaded.

    Args:
        modality: what it is to read.
        output: features or scores.
    """
    if teacher.library is None and teacher.name not in TEACHERS:
        known = nearest(teacher.name, TEACHERS)
        raise UserError(f"{where}.teacher.name {teacher.name!r} is not known without a library; {known}")
    if teacher.library is not None and teacher.library not in LIBRARIES:
        raise UserError(
            f"{where}.teacher.library {teacher.library!r} is not known; {nearest(teacher.library, LIBRARIES)}"
        )
    if output != "features" and (teacher.library is None or teacher.library in FEATURES_ONLY):
        raise UserError(f"{where}: the teacher {teacher} has no {output}")
    reads = READS.get(teacher.library or teacher.name, (modality,))
    if modality not in reads:
        raise UserError(f"{where}: the teacher {teacher} reads {' and '.join(reads)}, not {modality}")


def make_teacher(teacher: TeacherOptions, modality: str, output: str = "features") -> Teacher:
    """The teacher of items of a modality; output "scores": of its classes, instead of features."""
    check_teacher(teacher, "objective", modality, output)
    if teacher.library is None:
        return TEACHERS[teacher.name]()
    return LIBRARIES[teacher.library](teacher.model, modality, output)
