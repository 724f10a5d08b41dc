"""One item on its way through the model: taken apart into samples, put together again from their vectors."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.embed.items import reason_of
from onepeace.embed.parts import Part
from onepeace.errors import UserError


class Windows(NamedTuple):
    """The vectors of one sound, window by window."""

    vectors: Tensor
    """(W, E) float32, unit rows."""
    starts: list[float]
    ends: list[float]
    """Seconds from the beginning of the sound at which each window starts and ends."""


@dataclass(frozen=True)
class Embedded:
    """The result of one item: a vector, or the error that prevented it."""

    index: int
    """The item's place among the items, from 0."""
    name: str
    vector: Tensor | None = None
    """(E,) float32 unit vector on the CPU; None if the item failed."""
    windows: Windows | None = None
    """The vectors of its windows with long="windows"; `vector` is their renormalised mean."""
    error: Exception | None = None
    modality: str | None = None
    """The item's, or that of its first part; None if it failed."""
    is_silent: bool = False
    """Whether all of its sound is digital silence, of which a vector says nothing."""

    @property
    def reason(self) -> str | None:
        """Why the item failed, on one line and without its name; None if it did not."""
        return None if self.error is None else reason_of(self.name, self.error)


class Assembly:
    """Collects the vectors of one item, which the model computes in any order."""

    def __init__(self, index: int, name: str) -> None:
        self.index, self.name = index, name
        self.error: Exception | None = None
        self._rows: list[Tensor | None] = []
        self._spans: list[tuple[float, float]] = []
        self._parts: list[slice] = []
        self._modality: str | None = None
        self._is_silent: bool | None = None
        self._missing = 1  # one for the end of the item, which has not been seen yet

    def samples(self, parts: Sequence[Part]) -> Iterator[tuple[str, Tensor, int]]:
        """(modality, sample, row) of everything that is to be computed.

        Pieces may be decoded as they are taken; an error then fails the item.
        """
        try:
            for part in parts:
                self._modality = self._modality or part.modality
                first = len(self._rows)
                for start, end, sample in part.pieces:
                    self._spans.append((start, end))
                    if sample.ndim == 1 and sample.is_floating_point():  # a waveform
                        self._is_silent = self._is_silent is not False and bool(sample.min() == sample.max())
                    self._rows.append(None)
                    self._missing += 1
                    yield part.modality, sample, len(self._rows) - 1
                if len(self._rows) == first:
                    raise UserError("there is nothing in it to embed")
                self._parts.append(slice(first, len(self._rows)))
        except Exception as error:
            # Without this frame, which refers to the assembly: such a circle is freed late.
            self.error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        self._missing -= 1

    def fill(self, row: int, vector: Tensor) -> None:
        """Takes the (E,) vector of a row."""
        self._rows[row] = vector
        self._missing -= 1
        if not math.isfinite(vector.sum().item()):  # one number is quicker to look at than all
            self.error = UserError("the model gives NaN for it; try dtype float32")

    @property
    def done(self) -> bool:
        return self.error is not None or not self._missing

    def result(self, *, windows: bool = False) -> Embedded:
        """The item's result; `windows`: with the vectors of its windows.

        The windows of a sound give the renormalised mean of their unit vectors, and so do the parts of an item. A row
        that is the only one of its item stays as it is.
        """
        if self.error is not None:
            return Embedded(self.index, self.name, error=self.error)
        rows = [row for row in self._rows if row is not None]
        vector = _mean([_mean(rows[part]) for part in self._parts])
        cut = Windows(torch.stack(rows), *map(list, zip(*self._spans, strict=True))) if windows else None
        return Embedded(self.index, self.name, vector, cut, None, self._modality, bool(self._is_silent))


def _mean(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else F.normalize(torch.stack(rows).sum(dim=0), dim=0)
