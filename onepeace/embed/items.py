"""Items: a path, a value, or a dictionary of several of them by modality."""

import io
import os
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from torch import Tensor

from onepeace.embed.parts import CompositeItem
from onepeace.errors import UserError, one_line, reason_at
from onepeace.files.source import describe
from onepeace.processors import PROCESSORS, guess


def check_many(items: object, what: str = "items") -> Iterable:
    """Return `items`; UserError if it is a single item, which would be iterated as letters, lines, rows or keys."""
    if _is_single(items) or not isinstance(items, Iterable):
        raise UserError(f"{what} should be a list, not one {type(items).__name__}; put it in brackets: [...]")
    return items


def _is_single(items: object) -> bool:
    if isinstance(items, str | bytes | bytearray | memoryview | os.PathLike | Mapping | io.IOBase):
        return True
    if isinstance(items, tuple) and len(items) == 2:  # samples and their rate
        return isinstance(items[1], int | float | np.number)
    if isinstance(items, np.ndarray) and items.dtype.kind in "OUS":  # paths or texts
        return False
    return isinstance(items, Tensor | np.ndarray) and items.ndim < 4


def parts_of(item: object, modalities: Collection[str]) -> list[tuple[str, object]]:
    """(modality, value) of each part of an item; that of a plain item is guessed, and one of `modalities`."""
    values = composed(item)
    if values is None:
        return [(guess(item, modalities), item)]
    for key in values:
        if key not in PROCESSORS:
            raise UserError(f"a composed item has the keys {', '.join(PROCESSORS)}; not {key!r}")
    return list(values.items())


def name_of(index: int, item: object) -> str:
    """Name of an item in messages; a dictionary with one value is named after that value."""
    if isinstance(item, CompositeItem):
        return item.name
    if isinstance(item, list):
        return f"item {index}"
    values = composed(item)
    if values is None:
        return describe(item)
    if len(values) == 1:
        return describe(next(iter(values.values())))
    return f"item {index}"


def reason_of(name: str, error: Exception) -> str:
    """The reason for the failure of an item, on one line and without the item's name."""
    if isinstance(error, UserError):
        return reason_at(name, error)
    return one_line(f"{type(error).__name__}: {error}")


def composed(item: object) -> Mapping[str, object] | None:
    """The item if it is a dictionary by modality, else None; {"array": ..., "sampling_rate": ...} is a sound."""
    if not isinstance(item, Mapping) or not item:
        return None
    if any(key in PROCESSORS for key in item):
        return item
    is_value = any(processor.matches(item) for processor in PROCESSORS.values())
    return None if is_value else item
