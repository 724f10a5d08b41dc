"""Decoded parts of an item. Importing this module does not import torch."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Part(NamedTuple):
    """One picture, sound or text of an item, decoded."""

    modality: str
    pieces: "Iterable[tuple[float, float, Tensor]]"
    """(start second, end second, sample); several for a sound cut into windows, otherwise one from 0 to 0."""


class CompositeItem:
    """An item that lists its own parts: a video consists of pictures and a sound."""

    name: str
    """Name in messages."""
    copied: tuple[str, ...] = ()
    """Attributes that are set while the parts are read; if another process reads them, their values are copied back."""

    def parts(self, pieces: "Callable[[str, object], Iterable[tuple[float, float, Tensor]]]") -> list[Part]:
        """Everything to embed; each part has at least one piece, and later pieces are decoded as they are consumed.

        Args:
            pieces: decodes a value of a modality into the pieces of a `Part`.
        """
        raise NotImplementedError
