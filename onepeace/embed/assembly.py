"""From the model's rows back to items: order, sums of windows and of weighted parts, and what failed."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.errors import UserError

FIRST_ROWS = 256
CANCELLED = 1e-4
"""Norm of a sum of unit vectors below which only rounding is left of it."""


@dataclass(frozen=True, order=True)
class Failure:
    """An item that was skipped."""

    index: int
    """Its place among the items, from 0."""
    name: str
    reason: str


class Part(NamedTuple):
    """One picture, sound or text of an item, decoded."""

    modality: str
    weight: float
    pieces: Iterable[tuple[float, float, Tensor]]
    """(start, end, sample) in seconds; several for a sound cut into windows, else one, with 0 and 0."""


class Assembly:
    """Takes items apart into rows that the model fills in any order, and puts them together again.

    Args:
        width: numbers in a row.
        skip: note failures instead of raising them.
    """

    def __init__(self, width: int, skip: bool) -> None:
        self._rows = torch.empty(FIRST_ROWS, width)
        self._skip = skip
        self._failures: dict[int, Failure] = {}
        # Plain numbers per row, part and item: a million items must not become millions of objects.
        self._part_of_row, self._starts, self._ends = array("q"), array("d"), array("d")
        self._item_of_part, self._weight_of_part = array("q"), array("d")
        self._index_of_item = array("q")

    @property
    def failures(self) -> list[Failure]:
        return sorted(self._failures.values())

    def fail(self, index: int, name: str, error: Exception) -> None:
        """Notes that item `index` failed, or raises a `UserError` that names it."""
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.removeprefix(f"{name}: ").split())
        if not self._skip:
            raise UserError(f"{name}: {reason}") from error
        self._failures.setdefault(index, Failure(index, name, reason))

    def add(self, index: int, name: str, parts: list[Part]) -> Iterator[tuple[int, str, Tensor]]:
        """Makes room for item `index`; yields (row, modality, sample) of everything to be computed for it.

        Pieces may be decoded as they are taken; an error then fails the item.
        """
        item = len(self._index_of_item)
        self._index_of_item.append(index)
        for part in parts:
            number = len(self._item_of_part)
            self._item_of_part.append(item)
            self._weight_of_part.append(part.weight)
            pieces = iter(part.pieces)
            while True:
                try:
                    piece = next(pieces, None)
                except Exception as error:
                    self.fail(index, name, error)
                    return
                if piece is None:
                    break
                row = len(self._part_of_row)
                self._part_of_row.append(number)
                self._starts.append(piece[0])
                self._ends.append(piece[1])
                self._make_room(row)
                yield row, part.modality, piece[2]

    def _make_room(self, row: int) -> None:
        if row == len(self._rows):
            with torch.inference_mode(False):  # what comes out must be usable in training
                self._rows = torch.cat([self._rows, torch.empty_like(self._rows)])

    def fill(self, row: int, name: str, vector: Tensor) -> None:
        """Puts (width,) `vector` into its row; an item with a NaN fails."""
        self._rows[row] = vector
        if not vector.isfinite().all():
            error = UserError("the model gives NaN for it; try dtype float32")
            self.fail(self._index_of_item[self._item_of_part[self._part_of_row[row]]], name, error)

    def rows(self) -> list[tuple[Tensor, list[float], list[float]]]:
        """For every item that succeeded its rows (W, width), and where in time each starts and ends."""
        part = torch.tensor(self._part_of_row, dtype=torch.int64)
        item = torch.tensor(self._item_of_part, dtype=torch.int64)[part]
        counts = torch.bincount(item, minlength=len(self._index_of_item)).tolist()
        result, stop = [], 0
        for index, count in zip(self._index_of_item, counts, strict=True):
            start, stop = stop, stop + count
            if index not in self._failures:
                spans = slice(start, stop)
                result.append((self._rows[spans], self._starts[spans].tolist(), self._ends[spans].tolist()))
        return result

    def sums(self) -> Tensor:
        """(items that succeeded, width): one row for each, in order.

        The windows of a sound give the renormalised mean of their unit vectors, the parts of an item the renormalised
        sum of theirs times their weights. A row that is the only one of its item with weight 1 stays as it is.
        """
        vectors = self._rows[: len(self._part_of_row)]
        num_parts, num_items = len(self._item_of_part), len(self._index_of_item)
        if self._part_of_row != array("q", range(num_parts)):
            vectors = F.normalize(_sums(vectors, self._part_of_row, num_parts), dim=1)
        if self._item_of_part != array("q", range(num_items)) or not set(self._weight_of_part) <= {1.0}:
            weights = torch.tensor(self._weight_of_part, dtype=vectors.dtype)
            vectors = _sums(vectors * weights.unsqueeze(1), self._item_of_part, num_items)
            norms = vectors.norm(dim=1, keepdim=True)
            for item in (norms.squeeze(1) < CANCELLED).nonzero().flatten().tolist():
                index = self._index_of_item[item]
                self.fail(index, f"item {index}", UserError("its weighted parts cancel out; choose other weights"))
            vectors = vectors / norms
        kept = [item for item, index in enumerate(self._index_of_item) if index not in self._failures]
        return vectors if len(kept) == len(vectors) else vectors[kept]


def _sums(vectors: Tensor, group: array, num_groups: int) -> Tensor:
    return vectors.new_zeros(num_groups, vectors.shape[1]).index_add_(0, torch.tensor(group), vectors)
