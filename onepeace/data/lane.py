"""A lane: a part of the shards of some sources as an endless sequence of samples, indexed by position.

A lane takes the shards that an epoch gives it (order.py) until they hold ``buffer`` samples: a window. The samples of a
window come in a seeded permutation, each as often as the weight of its source says; then the next window is drawn. Only
indexes are read for this: a sample is parsed when its position is read.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.data.broken import Broken
from onepeace.data.index import digest_of
from onepeace.data.order import ORDER, draw_order, lane_shards, num_drawn
from onepeace.data.sample import Sample
from onepeace.data.shard import UnreadableShard
from onepeace.data.source import Candidates, Source
from onepeace.errors import UserError

Cursor = Mapping[str, int]
"""Start of a window of a lane, from which a resumed run continues: "epoch", "shard" (index among the lane's shards of
the epoch), "start" (position of its first sample); and the number of "shards" and "lanes", which must not change."""


@dataclass(frozen=True, eq=False)
class Window:
    """Samples that are shuffled together."""

    cursor: Cursor
    next_cursor: Cursor
    """Start of the next window."""
    shards: list[Candidates]
    """The shards that could be opened, source after source."""
    ends: NDArray[np.int64]
    """Number after the last sample of each shard; the samples are numbered shard after shard."""
    order: NDArray[np.int64]
    """Numbers of the samples in the order of reading, (D,)."""

    def __len__(self) -> int:
        """Number of samples, each counted once."""
        return int(self.ends[-1])

    def locate(self, number: int) -> tuple[Candidates, int]:
        """The shard of a sample, and the sample's number among those that its source uses."""
        i = int(np.searchsorted(self.ends, number, side="right"))
        shard = self.shards[i]
        return shard, number - int(self.ends[i]) + len(shard)

    def at(self, position: int) -> tuple[Candidates, int]:
        """The sample at a position of the lane; see `locate`."""
        number = self.order[position - self.cursor["start"]]
        return self.locate(int(number))

    def any_sample(self, rng: np.random.Generator) -> Sample:
        """A random sample, to be mixed into another; UserError if it is broken."""
        number = int(rng.integers(len(self)))
        candidates, candidate = self.locate(number)
        return candidates.read(candidate)

    @cached_property
    def digest(self) -> int:
        """63 bits of a hash of the samples and their order, the same on every machine."""
        parts: list[Any] = sorted(self.cursor.items())
        for candidates in self.shards:
            parts.append((candidates.source.number, candidates.shard.index.digest))
        return digest_of(repr(parts).encode() + self.order.tobytes())


class Lane:
    """A lane of the sources of one name: samples by position.

    Args:
        sources: all sources of the name.
        seed: seed of this run and name.
        lane, lanes: number of this lane, and of all.
        buffer: minimum number of samples in a window.
        run: number of consecutive samples from one source, where possible, for batches by source.
        cursor: window to start from; default: the first one.

    Raises:
        UserError: the number of shards or lanes is not the cursor's; on reading: no usable sample, or weights that
            leave no sample.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: Sequence[int],
        lane: int = 0,
        lanes: int = 1,
        buffer: int = 1,
        run: int = 1,
        cursor: Cursor | None = None,
    ) -> None:
        self.sources = list(sources)
        self.seed = list(seed)
        self.lane = lane
        self.lanes = lanes
        self.buffer = buffer
        self.run = run
        self.weights = [source.config.weight for source in sources]
        self._ends = list(accumulate(len(source.shards) for source in sources))
        """Number after the last shard of each source; shards are numbered source after source."""
        self.num_shards = self._ends[-1]
        self.begin: Cursor = {
            "epoch": 0,
            "shard": 0,
            "start": 0,
            "shards": self.num_shards,
            "lanes": lanes,
        }
        if cursor is not None:
            self.begin = cursor
        if self.begin["shards"] != self.num_shards:
            raise UserError(
                f"the checkpoint was written with {self.begin['shards']} shards, and now there are {self.num_shards} "
                f"({sources[0].config.shards}, ...); resume with the same shards"
            )
        self.windows: deque[Window] = deque()
        """Consecutive windows, from the one that `release` was last called for."""
        self.broken: list[Broken] = []
        """Shards that could not be opened, and damages of others, until somebody empties the list."""
        self.coming_shards: list[str] = []
        """Addresses of the shards of about the next window."""

    def window(self, position: int) -> Window:
        """The window that contains a position, reached from earlier windows or from the start."""
        if self.windows and position < self.windows[0].cursor["start"]:
            self.windows.clear()
        if not self.windows:
            self.windows.append(self._draw(self.begin))
        while position >= (next_cursor := self.windows[-1].next_cursor)["start"]:
            self.windows.append(self._draw(next_cursor))
        for window in reversed(self.windows):
            if position >= window.cursor["start"]:
                return window
        raise AssertionError("windows are consecutive")

    def release(self, position: int) -> None:
        """Forget the windows before a position, which will not be read again."""
        current = self.window(position)
        while self.windows[0] is not current:
            self.windows.popleft()

    def at(self, position: int) -> tuple[Candidates, int]:
        """The shard at a position, and the sample's number among those that its source uses."""
        return self.window(position).at(position)

    def read(self, position: int) -> Sample:
        """The sample at a position; UserError if it is broken (see `Candidates.read`)."""
        candidates, candidate = self.at(position)
        return candidates.read(candidate)

    def _epoch_shards(self, epoch: int) -> list[int]:
        """Numbers of the shards of this lane in the order of an epoch."""
        return lane_shards(self.seed, epoch, self.lane, self.lanes, self.num_shards)

    def _locate_shard(self, number: int) -> tuple[Source, int]:
        """Source of a shard, and the shard's number there."""
        i = bisect_right(self._ends, number)
        source = self.sources[i]
        return source, number - self._ends[i] + len(source.shards)

    def _draw(self, cursor: Cursor) -> Window:
        """The first window from ``cursor`` on that has a sample."""
        window = self._draw_once(cursor)
        while not len(window.order):
            window = self._draw_once(window.next_cursor)
        count = max(len(window.shards), 1)
        self.coming_shards = self._addresses(window.next_cursor, count)
        return window

    def _addresses(self, cursor: Cursor, count: int) -> list[str]:
        """Addresses of some of the shards from a cursor on."""
        numbers = self._epoch_shards(cursor["epoch"])
        first = cursor["shard"]
        addresses: list[str] = []
        for number in numbers[first : first + count]:
            source, shard = self._locate_shard(number)
            addresses.append(source.shards[shard])
        return addresses

    def _draw_once(self, cursor: Cursor) -> Window:
        """The window at ``cursor``, which may have no sample."""
        epoch = cursor["epoch"]
        first = cursor["shard"]
        numbers = self._epoch_shards(epoch)
        shards, last = self._open_until_full(numbers, first)
        sizes = self._sizes(shards)
        # The first window of the first lane has the seed of data sets that fit one window.
        lane_and_shard = [self.lane, first] if self.lane or first else []
        rng = np.random.default_rng([*self.seed, ORDER, epoch, *lane_and_shard])
        order = draw_order(sizes, self.weights, self.run, rng)
        next_cursor = {**cursor, "shard": last, "start": cursor["start"] + len(order)}
        if last >= len(numbers):
            next_cursor.update(epoch=epoch + 1, shard=0)
            if first == 0 and self.lanes == 1:
                self._check_epoch(sizes)
        ends = np.cumsum([len(candidates) for candidates in shards])
        return Window(cursor, next_cursor, shards, ends, order)

    def _open_until_full(self, numbers: Sequence[int], first: int) -> tuple[list[Candidates], int]:
        """Open shards from the first on until a window is full.

        Returns:
            Those that could be opened, source after source, and the index of the first one that was not taken.
        """
        opened: dict[int, Candidates] = {}
        sizes = dict.fromkeys(self.sources, 0)
        last = first
        for number in numbers[first:]:
            if self._is_full([*sizes.values()]):
                break
            last += 1
            candidates = self._open(number)
            if candidates is not None:
                opened[number] = candidates
                sizes[candidates.source] += len(candidates)
        shards = [opened[number] for number in sorted(opened)]
        return shards, last

    def _sizes(self, shards: Sequence[Candidates]) -> list[int]:
        """Number of samples by source."""
        sizes = dict.fromkeys(self.sources, 0)
        for shard in shards:
            sizes[shard.source] += len(shard)
        return list(sizes.values())

    def _is_full(self, sizes: Sequence[int]) -> bool:
        if sum(sizes) < self.buffer:
            return False
        return num_drawn(sizes, self.weights) >= self.run

    def _open(self, number: int) -> Candidates | None:
        """The samples of a shard; None if it cannot be opened."""
        source, shard = self._locate_shard(number)
        try:
            candidates = source.open(shard)
        except UnreadableShard as error:
            self.broken.append(source.unreadable(shard, error))
            return None
        self.broken += candidates.damages()
        return candidates

    def _check_epoch(self, sizes: list[int]) -> None:
        """`UserError` if all samples together are too few."""
        drawn = num_drawn(sizes, self.weights)
        if drawn < self.run:
            raise UserError(
                f"weights {self.weights} over {sizes} samples leave {drawn} an epoch, too few for batches of "
                f"{self.run} of one source; raise a weight, or lower run.batch_size"
            )
