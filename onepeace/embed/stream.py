"""Any number of items in bounded memory: decoded ahead in threads, batched by length. Next: assembly.py."""

import os
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 8
"""Decoding threads; PIL and soundfile let go of the interpreter's lock, but not all of the time."""


def decode_ahead(
    items: Iterable[Item], decode: Callable[[Item], Result], *, ahead: int
) -> Generator[tuple[int, Item, Result], None, None]:
    """Yields (index, item, decode(item)) in order, while threads decode up to `ahead` items further.

    `items` is read lazily, in the caller's thread. What `decode` raises is raised when its item's turn comes.
    """
    pool = ThreadPoolExecutor(min(MAX_WORKERS, ahead, max(2, os.cpu_count() or 1)), "onepeace-decode")
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

    row: int
    """Where its vector goes; rows are handed out in rising order."""
    size: int
    sample: Tensor
    name: str


class Batcher:
    """Groups samples of one modality and like size, so that little is padded; what it hands out depends on its input
    alone, never on timing.

    Args:
        batch_size: samples in a batch.
        window: how many samples may wait for company of their size.
    """

    def __init__(self, batch_size: int, window: int) -> None:
        self.batch_size = batch_size
        self.window = max(window, batch_size)
        self._waiting: dict[str, dict[int, list[Waiting]]] = defaultdict(lambda: defaultdict(list))
        self._count = 0

    def add(self, modality: str, entry: Waiting) -> tuple[str, list[Waiting]] | None:
        """Takes a sample in; returns a batch when one is full, or when too many samples wait."""
        equal = self._waiting[modality][entry.size]
        equal.append(entry)
        self._count += 1
        if len(equal) == self.batch_size:
            return modality, self._take(modality, equal)
        if self._count < self.window:
            return None
        # Around the one that has waited longest, not the longest ones: else short samples would wait for ever.
        modality, oldest = min(
            ((key, group[0]) for key, groups in self._waiting.items() for group in groups.values()),
            key=lambda pair: pair[1].row,
        )
        line = self._by_size(modality)
        place = next(index for index, entry in enumerate(line) if entry is oldest)
        start = max(0, min(place - self.batch_size // 2, len(line) - self.batch_size))
        return modality, self._take(modality, line[start : start + self.batch_size])

    def rest(self) -> Iterator[tuple[str, list[Waiting]]]:
        """Everything that still waits, the largest samples first, so that a batch too large for memory fails early."""
        for modality in list(self._waiting):
            line = self._by_size(modality)[::-1]
            for start in range(0, len(line), self.batch_size):
                yield modality, self._take(modality, line[start : start + self.batch_size])

    def _by_size(self, modality: str) -> list[Waiting]:
        return [entry for _, group in sorted(self._waiting[modality].items()) for entry in group]

    def _take(self, modality: str, entries: list[Waiting]) -> list[Waiting]:
        groups = self._waiting[modality]
        rows = {entry.row for entry in entries}
        for size in {entry.size for entry in entries}:
            groups[size] = [entry for entry in groups[size] if entry.row not in rows]
            if not groups[size]:
                del groups[size]
        self._count -= len(rows)
        return list(entries)
