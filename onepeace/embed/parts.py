"""Decoded parts of an item. Importing this module does not import torch."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Part(NamedTuple):
    """One picture, sound or text of an item, decoded."""

    modality: str
    pieces: "Iterable[tuple[float, float, Tensor]]"
    """(start, end, sample) in seconds; several for a sound that is cut into windows, else one, from 0 to 0."""


class Compound:
    """An item that says itself of which parts it is made, as a video is of pictures and a sound."""

    name: str
    """Name in messages."""
    learned: tuple[str, ...] = ()
    """Attributes that change while the parts are taken; where another process does that, they are brought back."""

    def parts(self, pieces: "Callable[[str, object], Iterable[tuple[float, float, Tensor]]]") -> list[Part]:
        """All that is to be embedded; each part has a piece at least, and others that are decoded as they are taken.

        Args:
            pieces: decodes a value of a modality, piece by piece as a `Part` has them.
        """
        raise NotImplementedError
