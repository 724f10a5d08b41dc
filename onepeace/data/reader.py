"""Reader of training data: any set of local or remote shards as an endless sequence of samples, indexed by position.

Order and mixture are a function of seed and position, for any number of workers and processes. An epoch draws shards
of all sources of a name without replacement until they hold ``data.shuffle_buffer`` samples: a window. Its samples are
read in a seeded permutation, each as often as the weight of its source says; then the next window is drawn. A data set
that fits one window is shuffled as a whole. Memory grows with the number of shards only by their names.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, starmap
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from onepeace.data.config import DataConfig
from onepeace.data.sample import Sample
from onepeace.data.shard_cache import open_shard
from onepeace.data.shards import Source
from onepeace.errors import UserError
from onepeace.files.source import scheme

ORDER, VARY, MASK, SHARDS = range(4)
"""Independent random streams."""

Cursor = Mapping[str, int]
"""Start of a window, from which a resumed run continues: "epoch", "shard" (index in the epoch's order), "start"
(position of its first sample), and the number of "shards", which must not change."""


def open_sources(data: DataConfig) -> list[Source]:
    """Sources of a recipe, in its order; UserError for missing shards."""
    return [Source(source, data) for source in data.train]


@dataclass(frozen=True, eq=False)
class Window:
    """Samples that are shuffled together."""

    cursor: Cursor
    following: Cursor
    """Start of the next window."""
    shards: dict[int, list[Sample]]
    """Usable samples by shard number."""
    samples: list[Sample]
    """All usable samples, source after source."""
    order: NDArray[np.int64]
    """Indices into ``samples`` in the order of reading, (D,)."""

    @property
    def known(self) -> int:
        """Number of samples read up to the end of the window."""
        return len(self.samples) if len(self.shards) == self.cursor["shards"] else self.following["start"]


class Reader:
    """Samples of the sources of one name by position: ``reader[position]``.

    Args:
        sources: all sources of the name.
        seed: seed of this run and name.
        buffer: minimum number of samples in a window.
        run: number of consecutive samples from one source, where possible, for batches by source.
        cursor: window to start from; default: the first one.

    Raises:
        UserError: the number of shards is not the cursor's; on reading: no usable sample, too many broken ones, or
            weights that leave no sample.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: Sequence[int],
        buffer: int = 1,
        run: int = 1,
        cursor: Cursor | None = None,
    ) -> None:
        self.sources, self.seed, self.buffer, self.run = list(sources), list(seed), buffer, run
        self.weights = [source.config.weight for source in sources]
        self.shards = [(source, i) for source in sources for i in range(len(source.shards))]
        self.begin = cursor or {"epoch": 0, "shard": 0, "start": 0, "shards": len(self.shards)}
        if self.begin["shards"] != len(self.shards):
            raise UserError(
                f"the checkpoint was written with {self.begin['shards']} shards, and now there are {len(self.shards)} "
                f"({sources[0].config.shards}, ...); resume with the same shards"
            )
        self.fetched: Cursor = {}
        self.windows: deque[Window] = deque(maxlen=2)  # the replacement of a broken sample may be in the second

    def __getitem__(self, position: int) -> Sample:
        window = self.window(position)
        return window.samples[window.order[position - window.cursor["start"]]]

    def since(self, position: int) -> Iterator[Sample]:
        """Endless iterator over the samples from a position on."""
        return map(self.__getitem__, count(position))

    def window(self, position: int) -> Window:
        """The window that contains a position, reached from the previous window or from the start."""
        if self.windows and position < self.windows[0].cursor["start"]:
            self.windows.clear()
        if not self.windows:
            self.windows.append(self._draw(self.begin))
        while position >= (last := self.windows[-1]).following["start"]:
            self.windows.append(self._draw(last.following))
        return last if position >= last.cursor["start"] else self.windows[0]

    def fetch_ahead(self) -> None:
        """Copy the remote shards of the next window in a thread; to be called after workers are forked."""
        if self.fetched == (following := (last := self.windows[-1]).following):
            return
        self.fetched, first = following, following["shard"]
        numbers = self._shard_order(following["epoch"])[first : first + len(last.shards)]
        coming = [self.shards[number] for number in numbers]
        if far := [(place, source.cache_bytes) for source, i in coming if scheme(place := source.shards[i])]:
            Thread(target=lambda: [*starmap(open_shard, far)], daemon=True).start()

    def _shard_order(self, epoch: int) -> list[int]:
        """Shard numbers in the order of an epoch."""
        return np.random.default_rng([*self.seed, SHARDS, epoch]).permutation(len(self.shards)).tolist()

    def _draw(self, cursor: Cursor) -> Window:
        """The first window from ``cursor`` on that has a sample."""
        begin = cursor["epoch"]
        seen = {number: samples for window in self.windows for number, samples in window.shards.items()}
        while True:
            epoch, first = cursor["epoch"], cursor["shard"]
            shards: dict[int, list[Sample]] = {}
            counts = dict.fromkeys(self.sources, 0)
            for number in self._shard_order(epoch)[first:]:
                source, i = self.shards[number]
                shards[number] = seen[number] if number in seen else source.read(i)
                counts[source] += len(shards[number])
                sizes = [*counts.values()]
                if sum(sizes) >= self.buffer and num_drawn(sizes, self.weights) >= self.run:
                    break
            for source in self.sources:
                source.check(complete=len(shards) == len(self.shards))
            # An epoch's first window has the seed of data sets that fit one window.
            seed = [*self.seed, ORDER, epoch, *([0, first] if first else [])]
            order = draw_order(sizes, self.weights, self.run, np.random.default_rng(seed))
            last, start = first + len(shards), cursor["start"] + len(order)
            there = {"epoch": epoch, "shard": last} if last < len(self.shards) else {"epoch": epoch + 1, "shard": 0}
            following = {**cursor, **there, "start": start}
            if len(order):
                samples = [sample for _, samples in sorted(shards.items()) for sample in samples]
                return Window(cursor, following, shards, samples, order)
            if epoch > begin + 1:  # a whole epoch had no sample
                for source in self.sources:
                    source.check()
                raise UserError(
                    f"weights {self.weights} over {sizes} items leave {num_drawn(sizes, self.weights)} an epoch, too "
                    f"few for batches of {self.run} of one source; raise a weight, or lower run.batch_size"
                )
            cursor = following


def num_drawn(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """Number of samples drawn from sources of these sizes."""
    return sum(int(weight) * size + round(weight % 1 * size) for size, weight in zip(sizes, weights, strict=True))


def draw_order(sizes: Sequence[int], weights: Sequence[float], run: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Random order of the samples of several sources, numbered source after source.

    A sample of a source with weight w occurs floor(w) or ceil(w) times, at random. With ``run`` above 1, ``run``
    consecutive samples are from one source, where possible: negatives of one kind are harder. Samples that do not fill
    the last run are dropped.
    """
    parts, first = [], 0
    for size, weight in zip(sizes, weights, strict=True):
        once_more = first + rng.permutation(size)[: round(weight % 1 * size)]
        each = np.tile(np.arange(first, first + size), int(weight))
        parts.append(rng.permutation(np.concatenate([each, once_more])))
        first += size
    # Full runs of each source and mixed runs of what is left over, in random order.
    cut = [len(part) - len(part) % run for part in parts]
    rest = rng.permutation(np.concatenate([part[end:] for part, end in zip(parts, cut, strict=True)]))
    whole = [part[:end] for part, end in zip(parts, cut, strict=True)]
    runs = np.concatenate([*whole, rest[: len(rest) - len(rest) % run]]).reshape(-1, run)
    return rng.permutation(runs).reshape(-1)
