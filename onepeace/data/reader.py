"""The one reader of training data: any set of shards, local or not, as an endless sequence of samples by position.

Order and mixture are a function of seed and position, whatever the number of workers and processes. An epoch draws the
shards of all sources of a pair without putting any back, until they hold ``data.shuffle_buffer`` samples: a window. Its
samples come in one seeded permutation, each as often as the weight of its source says; then the next window is drawn.
A set that one window holds is shuffled as a whole. Nothing grows with the number of shards but the list of their names.
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
"""Random streams that must differ."""

Cursor = Mapping[str, int]
"""Begin of a window, so that a resumed run need not count from the first one: "epoch", "shard" of the epoch's
order, "start" (position of its first sample), and the number of "shards", which must stay."""


def open_sources(data: DataConfig) -> list[Source]:
    """The sources of a recipe, in its order; UserError for shards that are not there."""
    return [Source(source, data.root, data.broken_limit, data.cache_gigabytes * 1e9) for source in data.train]


@dataclass(frozen=True, eq=False)
class Window:
    """Samples that are shuffled together."""

    cursor: Cursor
    following: Cursor
    """Begin of the next window."""
    shards: dict[int, list[Sample]]
    """Usable samples by number of the shard."""
    samples: list[Sample]
    """All of them, source after source."""
    order: NDArray[np.int64]
    """Numbers of ``samples`` as they come, (D,)."""

    @property
    def known(self) -> int:
        """Number of samples that have been seen at its end."""
        return len(self.samples) if len(self.shards) == self.cursor["shards"] else self.following["start"]


class Reader:
    """One pair's samples by position: ``reader[position]``.

    Args:
        sources: all of one pair.
        seed: numbers that tell this run and pair from others.
        buffer: samples of a window, at least.
        run: so many samples in a row are of one source, as far as that goes: batches by source.
        cursor: where to begin; else at position 0.

    Raises:
        UserError: other shards than the cursor's; from reading: nothing usable, too much broken, or weights that leave
            nothing.
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
                f"the checkpoint's position in the data is of {self.begin['shards']} shards, and now they are "
                f"{len(self.shards)} ({sources[0].config.shards}, ...); go on with the shards the run was started with"
            )
        self.fetched: Cursor = {}
        self.windows: deque[Window] = deque(maxlen=2)  # a broken sample's replacement may lie in the second one

    def __getitem__(self, position: int) -> Sample:
        window = self.window(position)
        return window.samples[window.order[position - window.cursor["start"]]]

    def since(self, position: int) -> Iterator[Sample]:
        """The samples from a position on, without end."""
        return map(self.__getitem__, count(position))

    def window(self, position: int) -> Window:
        """The window that a position lies in; it is found from the one before, or from the beginning."""
        if self.windows and position < self.windows[0].cursor["start"]:
            self.windows.clear()
        if not self.windows:
            self.windows.append(self._draw(self.begin))
        while position >= (last := self.windows[-1]).following["start"]:
            self.windows.append(self._draw(last.following))
        return last if position >= last.cursor["start"] else self.windows[0]

    def fetch_ahead(self) -> None:
        """Copy what the next window needs from elsewhere, beside the caller's work. Not before workers are forked."""
        if self.fetched == (following := (last := self.windows[-1]).following):
            return
        self.fetched, first = following, following["shard"]
        coming = [self.shards[number] for number in self._dealt(following["epoch"])[first : first + len(last.shards)]]
        if far := [(place, source.cache_bytes) for source, i in coming if scheme(place := source.shards[i])]:
            Thread(target=lambda: [*starmap(open_shard, far)], daemon=True).start()

    def _dealt(self, epoch: int) -> list[int]:
        """Numbers of the shards in the order of an epoch."""
        return np.random.default_rng([*self.seed, SHARDS, epoch]).permutation(len(self.shards)).tolist()

    def _draw(self, cursor: Cursor) -> Window:
        """The first window with any sample from ``cursor`` on."""
        begin = cursor["epoch"]
        seen = {number: samples for window in self.windows for number, samples in window.shards.items()}
        while True:
            epoch, first = cursor["epoch"], cursor["shard"]
            shards: dict[int, list[Sample]] = {}
            counts = dict.fromkeys(self.sources, 0)
            for number in self._dealt(epoch)[first:]:
                source, i = self.shards[number]
                shards[number] = seen[number] if number in seen else source.read(i)
                counts[source] += len(shards[number])
                sizes = [*counts.values()]
                if sum(sizes) >= self.buffer and drawn(sizes, self.weights) >= self.run:
                    break
            for source in self.sources:
                source.check(complete=len(shards) == len(self.shards))
            # The numbers of a set's only window are those it always had.
            seed = [*self.seed, ORDER, epoch, *([0, first] if first else [])]
            order = draw_order(sizes, self.weights, self.run, np.random.default_rng(seed))
            last, start = first + len(shards), cursor["start"] + len(order)
            there = {"epoch": epoch, "shard": last} if last < len(self.shards) else {"epoch": epoch + 1, "shard": 0}
            following = {**cursor, **there, "start": start}
            if len(order):
                samples = [sample for _, samples in sorted(shards.items()) for sample in samples]
                return Window(cursor, following, shards, samples, order)
            if epoch > begin + 1:  # a whole epoch had nothing
                for source in self.sources:
                    source.check()
                raise UserError(
                    f"weights {self.weights} over {sizes} items leave {drawn(sizes, self.weights)} an epoch, too few "
                    f"for batches of {self.run} of one source; raise a weight, or lower run.batch_size"
                )
            cursor = following


def drawn(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """Number of samples that come of sources of these sizes."""
    return sum(int(weight) * size + round(weight % 1 * size) for size, weight in zip(sizes, weights, strict=True))


def draw_order(sizes: Sequence[int], weights: Sequence[float], run: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random order of the samples of several sources, which are numbered one source after the other.

    A sample of a source with weight w comes floor(w) or ceil(w) times; which ones come once more is drawn. With ``run``
    above 1, so many samples in a row are of one source, as far as that goes: a batch whose negatives are all of one
    kind is the harder task. What then does not fill the last run is left out.
    """
    parts, first = [], 0
    for size, weight in zip(sizes, weights, strict=True):
        once_more = first + rng.permutation(size)[: round(weight % 1 * size)]
        each = np.tile(np.arange(first, first + size), int(weight))
        parts.append(rng.permutation(np.concatenate([each, once_more])))
        first += size
    if run == 1:
        return rng.permutation(np.concatenate(parts))
    # Full runs of each source, then the rests of all of them, in runs too; the order of the runs is drawn.
    cut = [len(part) - len(part) % run for part in parts]
    rest = rng.permutation(np.concatenate([part[end:] for part, end in zip(parts, cut, strict=True)]))
    whole = [part[:end] for part, end in zip(parts, cut, strict=True)]
    runs = np.concatenate([*whole, rest[: len(rest) - len(rest) % run]]).reshape(-1, run)
    return rng.permutation(runs).reshape(-1)
