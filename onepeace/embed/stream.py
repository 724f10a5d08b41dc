"""Steps from items to vectors: decode items ahead in threads, split them into samples, batch samples of similar size,
and assemble the items' vectors from those of their samples.

Memory is bounded for any number of items.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.device import remedy_for_nan
from onepeace.embed.items import reason_of
from onepeace.embed.parts import Part
from onepeace.errors import UserError
from onepeace.threads import MIN_BATCH, Computing

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCHES_PER_BLOCK, BLOCK_BYTES = 16, 1 << 26
"""Limits of a block, the samples that are sorted by size together: of small ones, such as texts, more fit into it."""


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
    """Index of the item, from 0."""
    name: str
    vector: Tensor | None = None
    """(E,) float32 unit vector on the CPU; None if the item failed."""
    windows: Windows | None = None
    """The vectors of the windows with long="windows"; `vector` is their normalised mean."""
    error: Exception | None = None
    modality: str | None = None
    """Modality of the item, or of its first part; None if it failed."""
    is_silent: bool = False
    """Whether all audio of the item is digital silence, for which a vector is meaningless."""

    @property
    def reason(self) -> str | None:
        """Reason for the failure, on one line and without the item's name; None if the item succeeded."""
        return None if self.error is None else reason_of(self.name, self.error)


class Assembly:
    """Collects the vectors of one item, which the model computes in any order, with numbers of a dtype."""

    def __init__(self, index: int, name: str, dtype: torch.dtype) -> None:
        self.index = index
        self.name = name
        self.dtype = dtype
        self.error: Exception | None = None
        self._modality: str | None = None
        self._is_silent: bool | None = None
        self._vectors: list[Tensor | None] = []
        self._spans: list[tuple[float, float]] = []
        self._rows_of_parts: list[slice] = []
        self._num_missing = 1  # one for the end of the item, which has not been seen yet

    def samples(self, parts: Sequence[Part]) -> Iterator["Sample"]:
        """Yield every sample of the item that is to be computed.

        Pieces may be decoded while they are consumed; an error in one fails the item.
        """
        try:
            for part in parts:
                yield from self._samples_of_part(part)
        except Exception as error:
            # Drop this frame, which refers to the assembly: a reference cycle would be freed late.
            self.error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        self._num_missing -= 1

    def _samples_of_part(self, part: Part) -> Iterator["Sample"]:
        self._modality = self._modality or part.modality
        first_row = len(self._vectors)
        for start, end, values in part.pieces:
            row = len(self._vectors)
            self._vectors.append(None)
            self._spans.append((start, end))
            self._num_missing += 1
            self._note_silence(part.modality, values)
            yield Sample(part.modality, values, self, row)
        if len(self._vectors) == first_row:
            raise UserError("it contains nothing to embed")
        self._rows_of_parts.append(slice(first_row, len(self._vectors)))

    def _note_silence(self, modality: str, values: Tensor) -> None:
        is_sound = modality == "audio"  # a waveform, or its spectrogram
        if is_sound and self._is_silent is not False:
            self._is_silent = bool(values.min() == values.max())

    def fill(self, row: int, vector: Tensor) -> None:
        """Store the (E,) vector of a row."""
        self._vectors[row] = vector
        self._num_missing -= 1
        if not math.isfinite(vector.sum().item()):  # checking the sum is faster than checking all
            self.error = UserError(f"the model gives NaN for it; {remedy_for_nan(self.dtype)}")

    @property
    def done(self) -> bool:
        return self.error is not None or not self._num_missing

    def result(self, *, windows: bool = False) -> Embedded:
        """The item's result, including the vectors of its windows if `windows`.

        The vector of a sound is the renormalised mean of the unit vectors of its windows; that of an item is the
        renormalised mean of the vectors of its parts. A single vector is returned unchanged.
        """
        if self.error is not None:
            return Embedded(self.index, self.name, error=self.error)
        vectors = [vector for vector in self._vectors if vector is not None]
        return Embedded(
            index=self.index,
            name=self.name,
            vector=_unit_mean([_unit_mean(vectors[rows]) for rows in self._rows_of_parts]),
            windows=self._windows(vectors) if windows else None,
            modality=self._modality,
            is_silent=bool(self._is_silent),
        )

    def _windows(self, vectors: list[Tensor]) -> Windows:
        starts = [start for start, _ in self._spans]
        ends = [end for _, end in self._spans]
        return Windows(torch.stack(vectors), starts, ends)


def _unit_mean(rows: list[Tensor]) -> Tensor:
    """The renormalised mean of unit vectors; a single one is returned unchanged."""
    if len(rows) == 1:
        return rows[0]
    return F.normalize(torch.stack(rows).sum(dim=0), dim=0)


class Sample(NamedTuple):
    """A decoded picture, sound or text, as the model reads it."""

    modality: str
    values: Tensor
    assembly: Assembly
    row: int
    """Row of its vector in the assembly."""


def batches_of(
    samples: Iterable[Sample], size_of: Callable[[Sample], int], batch_size: int, workers: int = 1
) -> Iterator[list[Sample]]:
    """Yield batches of one modality and similar sizes, to minimise padding; they depend only on the samples.

    The largest samples come first, so that a batch too large for memory fails early.

    Args:
        batch_size: maximum number of samples in a batch.
        workers: number of workers among which the samples of a modality are divided evenly.
    """
    by_modality: dict[str, list[Sample]] = {}
    for sample in samples:
        by_modality.setdefault(sample.modality, []).append(sample)
    for group in by_modality.values():
        group.sort(key=size_of, reverse=True)
        rounds = math.ceil(len(group) / (workers * batch_size))
        even_size = math.ceil(len(group) / (workers * rounds))
        size = max(even_size, min(MIN_BATCH, batch_size))
        for start in range(0, len(group), size):
            yield group[start : start + size]


class Queue:
    """Items in order, and their samples, which are sorted by size and computed block by block.

    Args:
        computing: computes the (B, E) vectors of a batch.
        size_of: length of a sample, by which samples are sorted.
        batch_size: samples that all workers together compute at once.
        windows: whether results contain the vectors of windows.
    """

    def __init__(
        self,
        computing: Computing[list[Sample], Tensor],
        size_of: Callable[[Sample], int],
        batch_size: int,
        *,
        windows: bool,
    ) -> None:
        self.block_size = BATCHES_PER_BLOCK * batch_size
        self._computing = computing
        self._size_of = size_of
        self._batch_size = batch_size
        self._windows = windows
        self._block: list[Sample] = []
        self._block_bytes = 0
        self._assemblies: deque[Assembly] = deque()

    def add(self, assembly: Assembly, parts: Sequence[Part]) -> Iterator[Embedded]:
        """Take an item, and yield the results that are available."""
        self._assemblies.append(assembly)
        for sample in assembly.samples(parts):
            self._block.append(sample)
            self._block_bytes += sample.values.nbytes
            if self._is_full():
                yield from self._start()
        if len(self._assemblies) > 2 * self.block_size:  # failures, which fill no block, wait behind an item
            yield from self.finish()
        yield from self._available()

    def finish(self) -> Iterator[Embedded]:
        """Compute all samples, and yield all results."""
        for batch, vectors in self._computing.finish(self._take_block()):
            yield from self._filled(batch, vectors)
        yield from self._available()

    def _is_full(self) -> bool:
        if len(self._block) % self._batch_size:  # batches would be smaller than they can be
            return False
        return len(self._block) == self.block_size or self._block_bytes >= BLOCK_BYTES

    def _start(self) -> Iterator[Embedded]:
        """Start to compute the block, and yield results of earlier ones."""
        for batch in self._take_block():
            for computed, vectors in self._computing.start(batch):
                yield from self._filled(computed, vectors)

    def _take_block(self) -> list[list[Sample]]:
        share = self._computing.share(self._batch_size)
        batches = list(batches_of(self._block, self._size_of, share, self._computing.workers))
        self._block = []
        self._block_bytes = 0
        return batches

    def _filled(self, batch: list[Sample], vectors: Tensor) -> Iterator[Embedded]:
        for sample, vector in zip(batch, vectors, strict=True):
            sample.assembly.fill(sample.row, vector)
        yield from self._available()

    def _available(self) -> Iterator[Embedded]:
        while self._assemblies and self._assemblies[0].done:
            yield self._assemblies.popleft().result(windows=self._windows)
