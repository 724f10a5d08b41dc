"""Two stages before the model: items are decoded ahead in threads, samples are batched with others of like size.

Both keep a bounded number of items in memory, however many there are.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from torch import Tensor

from onepeace.embed.assembly import Assembly
from onepeace.threads import LEAST, compute_alone

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 8
"""Decoding threads; PIL and soundfile release the interpreter's lock, but not all of the time."""


def decode_ahead(
    items: Iterable[Item], decode: Callable[[Item], Result], *, ahead: int
) -> Generator[tuple[int, Item, Result], None, None]:
    """Yields (index, item, decode(item)) in order, while threads decode up to `ahead` items further.

    `items` is read lazily, in the caller's thread. What `decode` raises is raised when its item's turn comes.
    """
    workers = min(MAX_WORKERS, ahead, max(2, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(workers, "onepeace-decode", initializer=compute_alone)
    waiting: deque[tuple[int, Item, Future[Result]]] = deque()
    try:
        for index, item in enumerate(items):
            waiting.append((index, item, pool.submit(decode, item)))
            if len(waiting) > ahead:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(index: int, item: Item, future: Future[Result]) -> tuple[int, Item, Result]:
    return index, item, future.result()


class Waiting(NamedTuple):
    """A decoded sample that waits for its batch."""

    modality: str
    size: int
    sample: Tensor
    assembly: Assembly
    row: int
    """Row of its vector in the assembly."""


class Batcher:
    """Groups samples of one modality and like size, so that little is padded. What it hands out depends on its input
    alone, never on timing.

    Args:
        batch_size: samples in a batch.
        window: how many samples may wait for others of their size.
    """

    def __init__(self, batch_size: int, window: int) -> None:
        self.batch_size = batch_size
        self.window = max(window, batch_size)
        self._waiting: dict[int, Waiting] = {}  # by rising number
        self._alike: Counter[tuple[str, int]] = Counter()
        self._count = 0

    def add(self, entry: Waiting) -> list[Waiting] | None:
        """Takes a sample in; returns a batch when one is full, or when too many samples wait."""
        self._waiting[self._count] = entry
        self._count += 1
        alike = entry[:2]
        self._alike[alike] += 1
        if self._alike[alike] == self.batch_size:
            return self._take([number for number, each in self._waiting.items() if each[:2] == alike])
        return self.around_oldest() if len(self._waiting) >= self.window else None

    def around_oldest(self) -> list[Waiting]:
        """The sample that has waited longest, with those nearest to it in size.

        Batches of the largest samples would be padded as little, but let short ones wait for ever.
        """
        oldest = next(iter(self._waiting))
        line = self._by_size(self._waiting[oldest].modality)
        start = max(0, min(line.index(oldest) - self.batch_size // 2, len(line) - self.batch_size))
        return self._take(line[start : start + self.batch_size])

    def rest(self, workers: int = 1) -> Iterator[list[Waiting]]:
        """All that still waits, in even batches for so many workers.

        The largest samples come first, so that a batch too large for memory fails early.
        """
        for modality in dict.fromkeys(entry.modality for entry in self._waiting.values()):
            line = self._by_size(modality)[::-1]
            rounds = -(-len(line) // (workers * self.batch_size))
            size = max(-(-len(line) // (workers * rounds)), min(LEAST, self.batch_size))
            for start in range(0, len(line), size):
                yield self._take(line[start : start + size])

    def _by_size(self, modality: str) -> list[int]:
        numbers = [number for number, entry in self._waiting.items() if entry.modality == modality]
        return sorted(numbers, key=lambda number: self._waiting[number].size)

    def _take(self, numbers: list[int]) -> list[Waiting]:
        entries = [self._waiting.pop(number) for number in numbers]
        self._alike -= Counter(entry[:2] for entry in entries)  # a count of 0 is dropped
        return entries
