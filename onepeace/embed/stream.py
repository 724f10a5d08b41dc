"""Steps from items to vectors: decode items ahead in threads, split them into samples, batch samples of similar size,
and assemble the items' vectors from those of their samples.

Memory is bounded for any number of items.
"""

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onepeace.device import remedy_for_nan
from onepeace.embed.items import reason_of
from onepeace.embed.parts import Part
from onepeace.errors import UserError
from onepeace.threads import MIN_BATCH, compute_alone

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 8
"""Number of decoding threads; PIL and soundfile release the GIL, but not always."""


def decode_ahead(
    items: Iterable[Item], decode: Callable[[Item], Result], *, ahead: int
) -> Generator[tuple[int, Item, Result | Exception], None, None]:
    """Yield (index, item, decode(item)) in order, while threads decode up to `ahead` further items.

    `items` is read lazily, in the caller's thread. An exception raised by `decode` is yielded as the item's result.
    """
    workers = min(MAX_WORKERS, ahead, max(2, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(workers, "onepeace-decode", initializer=compute_alone)
    started = ((index, item, pool.submit(decode, item)) for index, item in enumerate(items))
    try:
        waiting = deque(islice(started, ahead))
        while waiting:
            waiting.extend(islice(started, 1))
            index, item, future = waiting.popleft()
            error = future.exception()
            yield index, item, error if isinstance(error, Exception) else future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
        self.index, self.name, self.dtype = index, name, dtype
        self.error: Exception | None = None
        self._rows: list[Tensor | None] = []
        self._spans: list[tuple[float, float]] = []
        self._parts: list[slice] = []
        self._modality: str | None = None
        self._is_silent: bool | None = None
        self._missing = 1  # one for the end of the item, which has not been seen yet

    def samples(self, parts: Sequence[Part]) -> Iterator[tuple[str, Tensor, int]]:
        """Yield (modality, sample, row) of every sample to be computed.

        Pieces may be decoded while they are consumed; an error in one fails the item.
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
                    raise UserError("it contains nothing to embed")
                self._parts.append(slice(first, len(self._rows)))
        except Exception as error:
            # Drop this frame, which refers to the assembly: a reference cycle would be freed late.
            self.error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        self._missing -= 1

    def fill(self, row: int, vector: Tensor) -> None:
        """Store the (E,) vector of a row."""
        self._rows[row] = vector
        self._missing -= 1
        if not math.isfinite(vector.sum().item()):  # checking the sum is faster than checking all
            self.error = UserError(f"the model gives NaN for it; {remedy_for_nan(self.dtype)}")

    @property
    def done(self) -> bool:
        return self.error is not None or not self._missing

    def result(self, *, windows: bool = False) -> Embedded:
        """The item's result, including the vectors of its windows if `windows`.

        The vector of a sound is the renormalised mean of the unit vectors of its windows; that of an item is the
        renormalised mean of the vectors of its parts. A single vector is returned unchanged.
        """
        if self.error is not None:
            return Embedded(self.index, self.name, error=self.error)
        rows = [row for row in self._rows if row is not None]
        vector = _mean([_mean(rows[part]) for part in self._parts])
        cut = Windows(torch.stack(rows), *map(list, zip(*self._spans, strict=True))) if windows else None
        return Embedded(self.index, self.name, vector, cut, None, self._modality, bool(self._is_silent))


def _mean(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else F.normalize(torch.stack(rows).sum(dim=0), dim=0)


@dataclass(eq=False)
class Waiting:
    """A decoded sample waiting to be batched."""

    modality: str
    size: int
    sample: Tensor
    assembly: Assembly
    row: int
    """Row of its vector in the assembly."""


class Batcher:
    """Groups samples of one modality and similar size, to minimise padding. The batches depend only on the input, never
    on timing.

    Args:
        batch_size: samples in a batch.
        window: maximum number of samples that wait for others of their size.
    """

    def __init__(self, batch_size: int, window: int) -> None:
        self.batch_size = batch_size
        self.window = max(window, batch_size)
        self._waiting: dict[Waiting, tuple[str, int]] = {}  # oldest first; equal values are batched together
        self._counts: Counter[tuple[str, int]] = Counter()

    def add(self, entry: Waiting) -> list[Waiting] | None:
        """Add a sample; returns a batch when one is full or too many samples wait, else None."""
        self._waiting[entry] = kind = (entry.modality, entry.size)
        self._counts[kind] += 1
        if self._counts[kind] == self.batch_size:
            return self._take([one for one, other in self._waiting.items() if other == kind])
        return self.around_oldest() if len(self._waiting) >= self.window else None

    def around_oldest(self) -> list[Waiting]:
        """Batch of the sample that has waited longest and those nearest to it in size.

        Batches of the largest samples would need as little padding, but short samples would wait forever.
        """
        oldest = next(iter(self._waiting))
        line = self._by_size(oldest.modality)
        start = max(0, min(line.index(oldest) - self.batch_size // 2, len(line) - self.batch_size))
        return self._take(line[start : start + self.batch_size])

    def rest(self, workers: int = 1) -> Iterator[list[Waiting]]:
        """Yield the remaining samples, in batches of even size for `workers` workers.

        The largest samples come first, so that a batch too large for memory fails early.
        """
        for modality in dict.fromkeys(entry.modality for entry in self._waiting):
            line = self._by_size(modality)[::-1]
            rounds = -(-len(line) // (workers * self.batch_size))
            size = max(-(-len(line) // (workers * rounds)), min(MIN_BATCH, self.batch_size))
            for start in range(0, len(line), size):
                yield self._take(line[start : start + size])

    def _by_size(self, modality: str) -> list[Waiting]:
        return sorted((one for one in self._waiting if one.modality == modality), key=lambda one: one.size)

    def _take(self, entries: list[Waiting]) -> list[Waiting]:
        self._counts -= Counter(self._waiting.pop(entry) for entry in entries)  # a count of 0 is dropped
        return entries
