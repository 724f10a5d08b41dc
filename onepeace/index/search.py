"""What a query finds in an index: filters, the nearest vectors, one hit for each file, alike files together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from onepeace.errors import UserError
from onepeace.index.store import MODALITIES, Item, Rows, Store

ALIKE = 0.98
"""Cosine of two files of one kind from which on they count as copies of one another."""
CANDIDATES = 4
"""Vectors looked at for each hit that is wanted; several may be of one file."""


@dataclass(frozen=True)
class QueryVector:
    """A query as the index compares it."""

    vector: np.ndarray
    """(E,) float32, unit length: the weighted sum of the parts, renormalised."""
    parts: tuple[tuple[str, float], ...]
    """Modality and weight of each part, the weights divided by the length of the sum."""


@dataclass(frozen=True)
class Filter:
    """Which files may be found. Fields that are None, or empty, allow all."""

    only: tuple[str, ...] = ()
    """Modalities of the vectors; a video is found by its pictures and its sound."""
    where: str = "1"
    """An SQL condition over the files, with "?" for the parameters."""
    parameters: tuple[Any, ...] = ()
    accepts: Callable[[str], bool] | None = None
    """Says of a path whether it may be found."""
    exclude: frozenset[str] = frozenset()
    """Paths that are not found: those of the query's own files."""


@dataclass(frozen=True)
class Hit:
    """A file that was found."""

    rank: int
    item: Item
    modality: str
    """Of the vector that was found."""
    score: float
    """Cosine of the file's nearest vector and the query."""
    z: float
    """What hits are ordered by; the score itself for rank="raw"."""
    match: float | None
    """Probability that it is relevant; None without a calibration."""
    start: float | None = None
    end: float | None = None
    """Seconds of the part that was found, of a file that has several vectors."""
    copies: tuple[str, ...] = ()
    """Paths of further files that are nearly the same."""


@dataclass(frozen=True)
class Results:
    """The hits of a query."""

    hits: tuple[Hit, ...]
    compared: int
    """Files that the filters allowed."""
    relevant: bool | None = None
    """Whether any hit reaches the match that was asked for; None where that cannot be said."""


Sort = Literal["match", "date", "path"]


def allowed_rows(store: Store, rows: Rows, chosen: Filter) -> np.ndarray | None:
    """(n,) bool over ``rows``: what a filter allows; None = all."""
    masks = []
    if chosen.only:
        masks.append(np.isin(rows.modality, [MODALITIES.index(key) for key in chosen.only]))
    if chosen.where != "1":
        masks.append(np.isin(rows.file, store.ids(chosen.where, chosen.parameters)))
    if chosen.accepts is not None:
        named = [item.id for item in store.items("problem IS NULL") if chosen.accepts(item.path)]
        masks.append(np.isin(rows.file, np.array(named, np.int64)))
    if chosen.exclude:
        paths = [path.encode("utf-8", "surrogateescape") for path in chosen.exclude]
        marks = ", ".join("?" * len(paths))
        masks.append(~np.isin(rows.file, store.ids(f"path IN ({marks})", paths)))
    return np.logical_and.reduce(masks) if masks else None
