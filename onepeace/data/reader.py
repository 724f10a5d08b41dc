"""Reader of training data: which samples a process has in a step, from any set of local or remote shards.

The shards of all sources of a name are dealt to lanes anew in each epoch, and a batch has the same number of samples
from each lane: row b of B is from lane b // (B / lanes), at a position that follows from the step. A lane takes its
shards until they hold ``buffer`` samples: a window. The samples of a window come in a seeded permutation, each as often
as the weight of its source says; then the next window is drawn.

A process reads only the lanes under its own rows, so that each machine fetches only its part of the shards; and the
number of processes changes neither a batch nor the order. The number of lanes is fixed when a run starts: by default as
few machines as possible share one. Only indexes are read for all this: a sample is parsed when its position is read.
"""

import zlib
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from onepeace.data.config import DataConfig
from onepeace.data.order import MASK, ORDER, VARY, default_lanes, draw_order, lane_shards, num_drawn
from onepeace.data.sample import Sample
from onepeace.data.shard import UnreadableShard, fetch_ahead
from onepeace.data.source import Candidates, Lost, Source
from onepeace.errors import UserError

Cursor = Mapping[str, int]
"""Start of a window of a lane, from which a resumed run continues: "epoch", "shard" (index among the lane's shards of
the epoch), "start" (position of its first sample); and the number of "shards" and "lanes", which must not change. That
of a window has its number of "samples" too, which all processes that share the lane agree on."""


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

    def locate(self, number: int) -> tuple[Candidates, int]:
        """The shard of a sample, and the sample's number among those that its source uses."""
        i = int(np.searchsorted(self.ends, number, side="right"))
        shard = self.shards[i]
        return shard, number - int(self.ends[i]) + len(shard)

    def any_sample(self, rng: np.random.Generator) -> Sample:
        """A random sample, to be mixed into another; UserError if it is broken."""
        number = int(rng.integers(self.cursor["samples"]))
        candidates, candidate = self.locate(number)
        return candidates.read(candidate)


class Lane:
    """A part of the shards of the sources of one name, as an endless sequence of samples by position.

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
        self.begin: Cursor = {"epoch": 0, "shard": 0, "start": 0, "shards": self.num_shards, "lanes": lanes}
        if cursor is not None:
            self.begin = cursor
        if self.begin["shards"] != self.num_shards:
            raise UserError(
                f"the checkpoint was written with {self.begin['shards']} shards, and now there are {self.num_shards} "
                f"({sources[0].config.shards}, ...); resume with the same shards"
            )
        self.windows: deque[Window] = deque()
        """Consecutive windows, from the one that `release` was last called for."""
        self._ahead_of: Window | None = None
        """Window for which shards were last fetched ahead."""

    def window(self, position: int) -> Window:
        """The window that contains a position, reached from earlier windows or from the start."""
        if self.windows and position < self.windows[0].cursor["start"]:
            self.windows.clear()
        if not self.windows:
            self.windows.append(self._draw(self.begin))
        while position >= self.windows[-1].next_cursor["start"]:  # a window may have no sample
            self.windows.append(self._draw(self.windows[-1].next_cursor))
        return next(window for window in reversed(self.windows) if position >= window.cursor["start"])

    def release(self, position: int) -> None:
        """Forget the windows before a position, which will not be read again, and fetch shards of the next one ahead.

        Not while a window is drawn: that is done before the workers are forked, when no thread may run.
        """
        current = self.window(position)
        while self.windows[0] is not current:
            self.windows.popleft()
        if self._ahead_of is not current:
            self._ahead_of = current
            self._fetch_ahead(current)

    def at(self, position: int) -> tuple[Candidates, int]:
        """The shard at a position, and the sample's number among those that its source uses."""
        window = self.window(position)
        number = window.order[position - window.cursor["start"]]
        return window.locate(int(number))

    def _fetch_ahead(self, window: Window) -> None:
        """Fetch as many shards as a window has, of those that follow it in its epoch: the next one deals them anew."""
        following = window.next_cursor
        if following["epoch"] != window.cursor["epoch"]:
            return
        first = following["shard"]
        addresses: list[str] = []
        for number in self._epoch_shards(following["epoch"])[first : first + len(window.shards)]:
            source, shard = self._locate_shard(number)
            addresses.append(source.shards[shard])
        fetch_ahead(addresses, self.sources[0].cache_bytes)

    def _draw(self, cursor: Cursor) -> Window:
        """The window at ``cursor``, which has no sample if none of its shards can be opened."""
        epoch = cursor["epoch"]
        first = cursor["shard"]
        numbers = self._epoch_shards(epoch)
        shards, sizes, last = self._open_until_full(numbers, epoch, first)
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
        return Window({**cursor, "samples": sum(sizes)}, next_cursor, shards, ends, order)

    def _open_until_full(
        self, numbers: Sequence[int], epoch: int, first: int
    ) -> tuple[list[Candidates], list[int], int]:
        """Open shards from the first on until a window is full.

        Returns:
            Those that could be opened, source after source; the number of their samples by source; and the index of the
            first shard that was not taken.
        """
        opened: dict[int, Candidates] = {}
        sizes = dict.fromkeys(self.sources, 0)
        last = first
        for number in numbers[first:]:
            if sum(sizes.values()) >= self.buffer and num_drawn([*sizes.values()], self.weights) >= self.run:
                break
            last += 1
            source, shard = self._locate_shard(number)
            try:
                opened[number] = source.open(shard)
                sizes[source] += len(opened[number])
            except UnreadableShard as error:
                source.lost.append(Lost(source.number, str(error), shard, epoch))
        return [opened[number] for number in sorted(opened)], [*sizes.values()], last

    def _epoch_shards(self, epoch: int) -> list[int]:
        """Numbers of the shards of this lane in the order of an epoch."""
        return lane_shards(self.seed, epoch, self.lane, self.lanes, self.num_shards)

    def _locate_shard(self, number: int) -> tuple[Source, int]:
        """Source of a shard, and the shard's number there."""
        i = bisect_right(self._ends, number)
        source = self.sources[i]
        return source, number - self._ends[i] + len(source.shards)

    def _check_epoch(self, sizes: list[int]) -> None:
        """`UserError` if all samples together are too few."""
        drawn = num_drawn(sizes, self.weights)
        if drawn < self.run:
            raise UserError(
                f"weights {self.weights} over {sizes} samples leave {drawn} an epoch, too few for batches of "
                f"{self.run} of one source; raise a weight, or lower run.batch_size"
            )


@dataclass(frozen=True, eq=False)
class Item:
    """A place in a batch, with random numbers of its own."""

    lane: Lane
    position: int
    """Position of its sample in the lane; a broken one is replaced by the next that is not."""
    rng: np.random.Generator
    """For caption and augmentation."""
    mask_seed: Sequence[int]
    """For the masks."""

    @property
    def window(self) -> Window:
        """The samples that may be mixed into this one."""
        return self.lane.window(self.position)


class Reader:
    """The samples of the sources of one name, for one process.

    Args:
        sources: all sources of the name.
        data: the recipe's data section.
        seed: seed of the run.
        batch_size: items of a batch over all processes.
        rows: the rows of this process in each batch.
        machines: number of machines, each with a cache of its own and an equal part of a batch.
        cursors: cursors of an earlier step, from `cursors`, of all processes.

    Raises:
        UserError: the batch cannot be shared evenly by the lanes, or there are fewer shards; see `Lane`.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        data: DataConfig,
        seed: int,
        batch_size: int,
        rows: range,
        machines: int = 1,
        cursors: Mapping[str, Cursor] | None = None,
    ) -> None:
        self.sources = list(sources)
        self.name = sources[0].config.name
        label = "+".join(sources[0].config.modalities)
        if label != self.name:
            label = f"{label}:{self.name}"
        self.seed = [seed, zlib.crc32(label.encode())]
        self.batch_size = batch_size
        self.rows = rows
        self.machines = machines
        by_source = data.batches == "by_source"
        saved: dict[int, Cursor] = {}
        for key, cursor in (cursors or {}).items():
            name, _, lane = key.rpartition("/")
            if name == self.name:
                saved[int(lane)] = cursor
        self.num_lanes = self._number_of_lanes(data.lanes, by_source, saved)
        """Number of all lanes."""
        self.share = batch_size // self.num_lanes
        """Items of a batch from each lane."""
        self.lanes: dict[int, Lane] = {}
        """The lanes of this process by number."""
        for number in range(rows[0] // self.share, rows[-1] // self.share + 1):
            self.lanes[number] = Lane(
                self.sources,
                self.seed,
                lane=number,
                lanes=self.num_lanes,
                buffer=-(-data.shuffle_buffer // self.num_lanes),
                run=batch_size if by_source else 1,
                cursor=saved.get(number),
            )

    def _number_of_lanes(self, wanted: int | None, by_source: bool, saved: Mapping[int, Cursor]) -> int:
        shards = sum(len(source.shards) for source in self.sources)
        if saved:
            lanes = next(iter(saved.values()))["lanes"]
            if wanted not in (None, lanes):
                raise UserError(
                    f"data.lanes is {wanted}, and the checkpoint was written with {lanes}; leave it out, or start anew"
                )
            return lanes
        if by_source:  # all items of a batch are from one source, so that one lane decides for all
            return 1
        if wanted is None:
            return default_lanes(self.batch_size, shards, self.machines)
        if self.batch_size % wanted or wanted > shards:
            raise UserError(
                f"data.lanes is {wanted}: {self.name} has batches of {self.batch_size} and {shards} shards; give a "
                "divisor of the batch that is at most the number of shards"
            )
        return wanted

    def items(self, step: int) -> list[Item]:
        """The items of this process in a step."""
        items: list[Item] = []
        for row in self.rows:
            number = step * self.batch_size + row
            item = Item(
                lane=self.lanes[row // self.share],
                position=step * self.share + row % self.share,
                rng=np.random.default_rng([*self.seed, VARY, number]),
                mask_seed=[*self.seed, MASK, number],
            )
            items.append(item)
        return items

    def windows(self, step: int) -> Iterator[tuple[int, Window]]:
        """Number of each lane of this process, and its window at the beginning of a step.

        The window is the same for all processes that share the lane.
        """
        for number, lane in self.lanes.items():
            yield number, lane.window(step * self.share)

    def release(self, step: int) -> None:
        """Forget the windows before a step."""
        for lane in self.lanes.values():
            lane.release(step * self.share)

    def cursors(self, step: int) -> dict[str, Cursor]:
        """Cursors from which this and later steps are found, by "name/lane"."""
        return {f"{self.name}/{number}": window.cursor for number, window in self.windows(step)}
