"""A lane: a part of the shards of some sources as an endless sequence of samples, indexed by position.

A lane takes the shards that an epoch gives it (order.py) until they hold ``buffer`` samples: a window. The samples of a
window come in a seeded permutation, each as often as the weight of its source says; then the next window is drawn. Only
indexes are read for this: a sample is parsed when its position is read.
"""

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onepeace.data.broken import Broken
from onepeace.data.order import ORDER, draw_order, lane_shards, num_drawn
from onepeace.data.sample import Sample
from onepeace.data.shard import UnreadableShard
from onepeace.data.shards import Candidates, Source
from onepeace.errors import UserError

Cursor = Mapping[str, int]
"""Start of a window of a lane, from which a resumed run continues: "epoch", "shard" (index among the lane's shards of
the epoch), "start" (position of its first sample); and the number of "shards" and "lanes", which must not change."""


@dataclass(frozen=True, eq=False)
class Window:
    """Samples that are shuffled together."""

    cursor: Cursor
    following: Cursor
    """Start of the next window."""
    shards: list[Candidates]
    """The shards that could be opened, source after source."""
    starts: NDArray[np.int64]
    """Number of the first sample of each shard; the samples are numbered shard after shard."""
    order: NDArray[np.int64]
    """Numbers of the samples in the order of reading, (D,)."""

    def __len__(self) -> int:
        """Number of samples, each counted once."""
        return sum(len(shard) for shard in self.shards)

    def locate(self, number: int) -> tuple[Candidates, int]:
        """The shard of a sample, and the sample's number among those that its source uses."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.shards[shard], number - int(self.starts[shard])

    def at(self, position: int) -> tuple[Candidates, int]:
        """The sample at a position of the lane; see `locate`."""
        return self.locate(int(self.order[position - self.cursor["start"]]))

    def any_sample(self, rng: np.random.Generator) -> Sample:
        """A random sample, to be mixed into another; UserError if it is broken."""
        candidates, candidate = self.locate(int(rng.integers(len(self))))
        return candidates.read(candidate)

    @property
    def digest(self) -> int:
        """63 bits of a hash of the samples and their order, the same on every machine."""
        shards = [(candidates.source.number, candidates.shard.index.digest) for candidates in self.shards]
        content = repr([sorted(self.cursor.items()), shards]).encode() + self.order.tobytes()
        return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 1


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
        self.shards = [(source, number) for source in sources for number in range(len(source.shards))]
        """Source and number of each shard."""
        self.begin = cursor or {"epoch": 0, "shard": 0, "start": 0, "shards": len(self.shards), "lanes": lanes}
        if self.begin["shards"] != len(self.shards):
            raise UserError(
                f"the checkpoint was written with {self.begin['shards']} shards, and now there are {len(self.shards)} "
                f"({sources[0].config.shards}, ...); resume with the same shards"
            )
        self.windows: deque[Window] = deque()
        """Consecutive windows, from the one that `release` was last called for."""
        self.broken: list[Broken] = []
        """Shards that could not be opened, and damages of others, until somebody empties the list."""

    def window(self, position: int) -> Window:
        """The window that contains a position, reached from earlier windows or from the start."""
        if self.windows and position < self.windows[0].cursor["start"]:
            self.windows.clear()
        if not self.windows:
            self.windows.append(self._draw(self.begin))
        while position >= self.windows[-1].following["start"]:
            self.windows.append(self._draw(self.windows[-1].following))
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

    def coming_shards(self) -> list[tuple[str, float]]:
        """Address, and limit of the cache, of the shards of about the next window."""
        last = self.windows[-1]
        following = last.following
        numbers = self._lane_shards(following["epoch"])[following["shard"] :][: max(len(last.shards), 1)]
        coming: list[tuple[str, float]] = []
        for number in numbers:
            source, shard = self.shards[number]
            coming.append((source.shards[shard], source.cache_bytes))
        return coming

    def _lane_shards(self, epoch: int) -> list[int]:
        return lane_shards(self.seed, epoch, self.lane, self.lanes, len(self.shards))

    def _draw(self, cursor: Cursor) -> Window:
        """The first window from ``cursor`` on that has a sample."""
        while True:
            window = self._draw_once(cursor)
            if len(window.order):
                return window
            cursor = window.following

    def _draw_once(self, cursor: Cursor) -> Window:
        """The window at ``cursor``, which may have no sample."""
        epoch = cursor["epoch"]
        first = cursor["shard"]
        numbers = self._lane_shards(epoch)
        shards: dict[int, Candidates] = {}
        sizes = dict.fromkeys(self.sources, 0)
        last = first
        while last < len(numbers) and not self._is_full(list(sizes.values())):
            number = numbers[last]
            last += 1
            candidates = self._open(number)
            if candidates is not None:
                shards[number] = candidates
                sizes[candidates.source] += len(candidates)
        # The first window of the first lane has the seed of data sets that fit one window.
        place = [self.lane, first] if self.lane or first else []
        rng = np.random.default_rng([*self.seed, ORDER, epoch, *place])
        order = draw_order(list(sizes.values()), self.weights, self.run, rng)
        following = {**cursor, "shard": last, "start": cursor["start"] + len(order)}
        if last == len(numbers):
            following.update(epoch=epoch + 1, shard=0)
            if first == 0 and self.lanes == 1:
                self._check_epoch(list(sizes.values()))
        ordered = [candidates for _, candidates in sorted(shards.items())]
        starts = np.cumsum([0, *(len(candidates) for candidates in ordered)])[:-1]
        return Window(cursor, following, ordered, starts, order)

    def _is_full(self, sizes: list[int]) -> bool:
        return sum(sizes) >= self.buffer and num_drawn(sizes, self.weights) >= self.run

    def _open(self, number: int) -> Candidates | None:
        """The samples of a shard; None if it cannot be opened."""
        source, shard = self.shards[number]
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
