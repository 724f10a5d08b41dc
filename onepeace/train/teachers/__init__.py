"""Teachers: pretrained networks of other libraries whose outputs for the training items are targets of a term. They are
computed once, before the first step, and read from disk afterwards."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onepeace.config.reader import nearest
from onepeace.device import upload
from onepeace.errors import UserError
from onepeace.train.frozen import compute_missing
from onepeace.train.frozen_cache import FrozenCache, Output, fingerprint
from onepeace.train.teachers.networks import Teacher, timm_teacher, transformers_teacher

log = logging.getLogger(__name__)

PART = 1024
"""Items per part of the cache: less than the ten minutes that processes wait for each other."""
BATCH = 64
"""Items per forward pass of a teacher."""
TEACHERS: dict[str, Callable[[str, str, str], Teacher]] = {
    "timm": timm_teacher,
    "transformers": transformers_teacher,
}
"""Constructors by library: (name of a model, modality, "features" or "scores") -> teacher."""


@dataclass(frozen=True)
class TeacherOptions:
    """Options of the ``teacher`` of a term in a recipe."""

    library: str
    """Key of TEACHERS."""
    name: str
    """Model of the library: its name there, a repository on the Hub, or a folder."""
    reads: Literal["items", "captions"] = "items"
    """Input of the teacher: the items or their captions."""

    def __post_init__(self) -> None:
        if self.library not in TEACHERS:
            raise UserError(f"teacher.library {self.library!r} is not known; {nearest(self.library, TEACHERS)}")

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"


class TeacherTable(NamedTuple):
    """Outputs of a teacher for a training set."""

    row: dict[str, int]
    """Row of the table by name of the item: a sample's key, or a caption. Undecodable items have no row."""
    features: Tensor
    """(N, F) float16."""

    def known(self, names: Sequence[str], vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors (n, D) of those items that are in the table, and their features (n, F)."""
        items = [item for item, name in enumerate(names) if name in self.row]
        rows = [self.row[names[item]] for item in items]
        index = upload(torch.tensor(items, dtype=torch.int64), vectors.device)
        features = self.features[torch.tensor(rows, dtype=torch.int64)]
        return vectors[index], upload(features, vectors.device)


def teacher_table(
    teacher: TeacherOptions,
    items: Mapping[str, Any],
    read: Callable[[str], Any],
    root: Path,
    modality: str,
    output: str = "features",
) -> TeacherTable:
    """Outputs of a teacher for all items, computed once and kept in a folder in ``root``.

    Args:
        items: items by name (samples by key, or None by the caption itself), see `FrozenCache`.
        read: function from an item's name to the teacher's input.
        modality: modality of the items.
        output: "features" or "scores".

    Raises:
        UserError: the teacher cannot be loaded, or no item can be decoded.
    """
    if not items:
        raise UserError(f"no item of the data has {modality} for the teacher {teacher} to read; see data.train")
    label = re.sub(r"[^\w.-]+", "-", f"{teacher}-{modality}")
    cache = FrozenCache(root / f"{label}-{fingerprint([str(teacher), modality, output])}", items)
    outputs = _Outputs(teacher, modality, output, read)
    compute_missing(cache, outputs.compute, PART)
    rows: dict[str, int] = {}
    features = []
    for name in items:
        if name in cache.places:
            rows[name] = len(rows)
            features.append(cache.read(cache.places[name][0]))
    if not rows:
        raise UserError(f"no item of {modality} can be decoded for the teacher {teacher}; see data.train")
    return TeacherTable(rows, torch.from_numpy(np.stack(features)))


class _Outputs:
    """Computes a teacher's outputs; the teacher is loaded for the first of them.

    Args:
        teacher, modality, output, read: see `teacher_table`.
    """

    def __init__(self, teacher: TeacherOptions, modality: str, output: str, read: Callable[[str], Any]) -> None:
        self.teacher = teacher
        self.modality = modality
        self.output = output
        self.read = read

    @cached_property
    def encode(self) -> Teacher:
        return TEACHERS[self.teacher.library](self.teacher.name, self.modality, self.output)

    def compute(self, names: Sequence[str]) -> Iterator[Output]:
        """Outputs of the items that can be decoded."""
        for start in range(0, len(names), BATCH):
            loaded = self._load(names[start : start + BATCH])
            if loaded:
                vectors = self.encode(list(loaded.values())).half().numpy()
                for name, vector in zip(loaded, vectors, strict=True):
                    yield Output(name, vector)

    def _load(self, names: Sequence[str]) -> dict[str, Any]:
        """Decoded items by name; those that cannot be decoded are logged and left out."""
        loaded = {}
        for name in names:
            try:
                loaded[name] = self.read(name)
            except UserError as error:
                log.warning("%s cannot be decoded, so %s has no output for it: %s", name, self.teacher, error)
        return loaded
