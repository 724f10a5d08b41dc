"""Finds a teacher by its name."""

from collections.abc import Callable

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
"""By their whole name."""
LIBRARIES: dict[str, Callable[[str, str, str], Teacher]] = {
    "timm": timm_teacher,
    "transformers": transformers_teacher,
    "open_clip": open_clip_teacher,
}
"""By what stands before a colon; (what stands after it, modality, "features" or "scores") -> teacher."""
READS: dict[str, tuple[str, ...]] = {
    "efficientnet-lite0": ("image",),
    "minilm-l6-v2": ("text",),
    "timm": ("image",),
    "open_clip": ("text", "image"),
}
"""The modalities that a teacher, or those of a library, can read; all where it is not listed."""
FEATURES_ONLY = frozenset(["transformers", "open_clip"])
"""Libraries of teachers without scores, as every one of TEACHERS is."""


def check_teacher(name: str, where: str, modality: str, output: str = "features") -> None:
    """UserError that begins with ``where`` if there is no such teacher, or none that could be; nothing is loaded.

    Args:
        modality: what it is to read.
        output: features or scores.
    """
    library, _, network = name.partition(":")
    if name not in TEACHERS and not (library in LIBRARIES and network):
        known = ", ".join([*TEACHERS, *(f"{library}:NAME" for library in LIBRARIES)])
        raise UserError(f"{where}: teacher {name!r} is not known; known: {known}")
    if output != "features" and (name in TEACHERS or library in FEATURES_ONLY):
        raise UserError(f"{where}: the teacher {name} has no {output}")
    reads = READS.get(name if name in TEACHERS else library, (modality,))
    if modality not in reads:
        raise UserError(f"{where}: the teacher {name} reads {' and '.join(reads)}, not {modality}")


def make_teacher(name: str, modality: str, output: str = "features") -> Teacher:
    """The teacher ``efficientnet-lite0``, ``timm:NAME``... of items of a modality; output "scores": of its classes,
    instead of features."""
    check_teacher(name, "objective", modality, output)
    if name in TEACHERS:
        return TEACHERS[name]()
    library, _, network = name.partition(":")
    return LIBRARIES[library](network, modality, output)
