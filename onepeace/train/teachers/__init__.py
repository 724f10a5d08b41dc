"""Outside teachers, by what a recipe says of them. A term draws our vectors towards what they say of the training
items, which is computed once, before the first step, and read from disk afterwards."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from onepeace.config.reader import nearest
from onepeace.data.frozen_cache import FrozenCache, Output, batched, fingerprint
from onepeace.errors import UserError
from onepeace.train.teachers.networks import Teacher, timm_teacher, transformers_teacher

log = logging.getLogger(__name__)

PART = 8192
"""Items of a part of the cache."""
BATCH = 64
"""Items that a teacher is given at once."""
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

    def __post_init__(self) -> None:
        if self.library not in TEACHERS:
            raise UserError(f"teacher.library {self.library!r} is not known; {nearest(self.library, TEACHERS)}")

    def __str__(self) -> str:
        return f"{self.library}:{self.name}"


class TeacherTable(NamedTuple):
    """A teacher's features of a training set."""

    row: dict[str, int]
    """Row of the table by name of the item: a sample's key, or a caption. Items that cannot be decoded have none."""
    features: Tensor
    """(N, F) float16."""

    def known(self, names: Sequence[str], vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors (n, D) of the items that the teacher knows, and their features (n, F)."""
        known = [(i, self.row[name]) for i, name in enumerate(names) if name in self.row]
        items, rows = torch.tensor(known, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return vectors[items.to(vectors.device)], self.features[rows].to(vectors.device)


def teacher_table(
    teacher: TeacherOptions,
    names: Sequence[str],
    read: Callable[[str], Any],
    root: Path,
    modality: str,
    output: str = "features",
) -> TeacherTable:
    """Features of every name, computed once and kept in a folder of their own in ``root``.

    Args:
        names: unique names of the items (sample keys, or the captions themselves).
        read: gives the item of a name, as the teacher wants it.
        modality: of the items.
        output: features or scores.

    Raises:
        UserError: the teacher cannot be had, or there is no item that can be decoded.
    """
    if not names:
        raise UserError(f"no item of the data has {modality} for the teacher {teacher} to read; see data.train")
    label = re.sub(r"[^\w.-]+", "-", f"{teacher}-{modality}")
    cache = FrozenCache(root / f"{label}-{fingerprint([str(teacher), modality, output])}", names)
    if cache.missing:
        encode = TEACHERS[teacher.library](teacher.name, modality, output)

        def compute(part: list[str]) -> Iterator[Output]:
            for some in batched(part, BATCH):
                items = {}
                for name in some:
                    try:
                        items[name] = read(name)
                    except UserError as error:
                        log.warning("%s cannot be decoded, so %s says nothing of it: %s", name, teacher, error)
                if items:
                    yield from map(Output, items, encode([*items.values()]).half().numpy())

        cache.fill(compute, PART)
    known = {name: cache.places[name][0] for name in names if name in cache.places}
    if not known:
        raise UserError(f"no item of {modality} can be decoded for the teacher {teacher}; see data.train")
    features = torch.from_numpy(np.stack([cache.read(place) for place in known.values()]))
    return TeacherTable({name: row for row, name in enumerate(known)}, features)
