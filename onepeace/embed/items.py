"""Items: a path, a value, several of them in a dictionary by modality, or a `CompositeItem`; their decoded parts.

The processors, which need torch, are imported where they are asked: an index is opened without.
"""

import io
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from onepeace.errors import UserError, one_line, reason_at
from onepeace.files.source import NamedBytes, describe, is_open_file, read_bytes

if TYPE_CHECKING:
    from torch import Tensor

Piece: TypeAlias = "tuple[float, float, Tensor]"
"""Start second, end second and decoded values; 0 and 0 for an item without a duration."""


class Part(NamedTuple):
    """One picture, sound or text of an item, decoded."""

    modality: str
    pieces: Iterable[Piece]
    """Several for a sound cut into windows, otherwise one."""


class CompositeItem:
    """An item that lists its own parts: a video consists of pictures and a sound."""

    name: str
    """Name in messages."""
    copied: tuple[str, ...] = ()
    """Attributes that are set while the parts are read; if another process reads them, their values are copied back."""

    def parts(self, pieces: Callable[[str, object], Iterable[Piece]]) -> list[Part]:
        """Everything to embed; each part has at least one piece, and later pieces are decoded as they are consumed.

        Args:
            pieces: decodes a value of a modality into the pieces of a `Part`.
        """
        raise NotImplementedError


def check_many(items: object, what: str = "items") -> Iterable:
    """Return `items`; UserError if it is a single item, which would be iterated as letters, lines, rows or keys."""
    from torch import Tensor

    is_single = isinstance(items, str | bytes | bytearray | memoryview | os.PathLike | Mapping | io.IOBase)
    if isinstance(items, tuple) and len(items) == 2:  # samples and their rate
        is_single = isinstance(items[1], int | float | np.number)
    if isinstance(items, Tensor | np.ndarray):
        holds_texts = isinstance(items, np.ndarray) and items.dtype.kind in "OUS"
        is_single = items.ndim < 4 and not holds_texts
    if is_single or not isinstance(items, Iterable):
        raise UserError(f"{what} should be a list, not one {type(items).__name__}; put it in brackets: [...]")
    return items


def parts_of(item: object, modalities: Collection[str], modality: str | None = None) -> list[tuple[str, object]]:
    """(modality, value) of each part of an item; that of a plain item is guessed, and one of `modalities`.

    Args:
        modality: that of all items, if the caller states it.
    """
    if isinstance(item, list):
        raise UserError("it is a list inside the list of items; give one flat list")
    if modality is not None:
        if isinstance(item, Mapping) and item.keys() & modalities:
            raise UserError(f"it is a dictionary by modality; give it to `encode`, or its {modality} alone")
        return [(modality, _content(item))]
    from onepeace.processors import PROCESSORS, guess

    values = composed(item)
    if values is None:
        content = _content(item)
        return [(guess(content, modalities), content)]
    for key in values:
        if key not in PROCESSORS:
            raise UserError(f"a composed item has the keys {', '.join(PROCESSORS)}; not {key!r}")
    return [(key, _content(value)) for key, value in values.items()]


def _content(value: object) -> object:
    """The bytes of a file that the caller opened; any other value as it is."""
    return NamedBytes(read_bytes(value), describe(value)) if is_open_file(value) else value


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
    from onepeace.processors import PROCESSORS

    if any(key in PROCESSORS for key in item):
        return item
    is_value = any(processor.matches(item) for processor in PROCESSORS.values())
    return None if is_value else item
