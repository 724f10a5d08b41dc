"""Sources that do not fit in memory: samples read from webdataset shards as they are needed, still encoded.

Every worker of every process, numbered as the run was started, reads its own part of a source, epoch after epoch: its
stream shard. The order of its samples is a function of (seed, epoch, worker), and its position is a few numbers: a
checkpoint holds them, and the worker goes on with the very next sample.
"""

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from onepeace.data.sample import Sample
from onepeace.data.shards import NAMED, raw_samples, refuse_corrupt, usable_sample
from onepeace.errors import UserError
from onepeace.files.source import describe

log = logging.getLogger(__name__)

Position = Mapping[str, Any]
"""Where a `StreamShard` or a `Mixture` stands: plain numbers, lists and dictionaries, as JSON holds them."""

UNITS, BUFFERS, PICKS = range(100, 103)
"""Streams of random numbers that must not be the same, nor one of those in steps.py."""


class WorkUnit(NamedTuple):
    """What one worker reads at a time: those samples of a shard whose running number % ``parts`` is ``part``."""

    shard: str
    part: int
    parts: int


def work_units(shards: Sequence[str], num_workers: int) -> list[WorkUnit]:
    """Each shard whole where there is at least one per worker, else all cut into as few parts as give each worker one.

    A part costs as much reading as its whole shard; only what it does not take is dropped at once.
    """
    parts = -(-num_workers // len(shards))
    return [WorkUnit(shard, part, parts) for shard in shards for part in range(parts)]


def processes_of(rank: int, world_size: int, first_world_size: int) -> list[int]:
    """Those of the ``first_world_size`` processes a run began with whose data process ``rank`` of ``world_size`` reads.

    Raises:
        UserError: they cannot be shared evenly.
    """
    if first_world_size % world_size:
        fitting = ", ".join(str(n) for n in range(1, first_world_size + 1) if first_world_size % n == 0)
        raise UserError(
            f"this run was started with {first_world_size} processes, whose data {world_size} cannot share evenly; set "
            f"the number of processes to one of {fitting}"
        )
    share = first_world_size // world_size
    return list(range(rank * share, (rank + 1) * share))


def first_samples(
    shards: Sequence[str], pair: Sequence[str], count: int, broken_limit: float = 0.02
) -> Iterator[Sample]:
    """The first ``count`` usable samples in the order of the shards, one at a time; fewer where there are no more.

    Args:
        shards, pair, broken_limit: as for `StreamShard`.

    Raises:
        UserError: too many are broken, or there is not one.
    """
    tally = _Tally(shards, broken_limit)
    for shard in shards:
        for raw in raw_samples(shard, tally.lines):
            sample = usable_sample(raw, shard, pair, tally.lines)
            tally.count(sample)
            if sample is not None:
                yield sample
            if tally.good >= count:
                return
        tally.count()
    if not tally.good:
        raise UserError(f"{tally.name}: no usable sample; {tally.last}")


class _Tally:
    """Counts what is usable and what is broken, names the first broken ones, and raises when they are too many."""

    def __init__(self, shards: Sequence[str], limit: float, good: int = 0, broken: int = 0):
        self.name = describe(shards[0]) + (f" (of {len(shards)} shards)" if len(shards) > 1 else "")
        self.limit, self.good, self.broken = limit, good, broken
        self.lines: list[str] = []
        """Broken and not yet counted: file, key, reason."""
        self.last = "the shards are empty"

    def count(self, sample: Sample | None = None) -> None:
        """Count a usable sample, where there is one, and the broken ones in ``lines``."""
        self.good += sample is not None
        for line in self.lines:
            self.broken += 1
            self.last = line
            if self.broken <= NAMED:
                log.warning("broken and left out: %s%s", line, " (more are only counted)" * (self.broken == NAMED))
        self.lines.clear()
        refuse_corrupt(self.name, self.good, self.broken, self.last, self.limit)


class StreamShard:
    """The endless sequence of one source's samples for one worker; all workers have each sample once in an epoch.

    The `work_units` of the source are permuted anew for each epoch and dealt to the workers. A worker reads its units
    into a shuffle buffer, which is permuted and emptied before it is filled again, and never holds two epochs.
    """

    def __init__(
        self,
        shards: Sequence[str],
        pair: Sequence[str],
        *,
        seed: int,
        source: int = 0,
        worker: int = 0,
        num_workers: int = 1,
        shuffle_buffer: int = 1000,
        shuffle_buffer_megabytes: float = 256,
        broken_limit: float = 0.02,
        targets: Sequence[str] = (),
    ):
        """
        Args:
            shards: at least one, as `onepeace.data.shards.expand` gives them.
            pair, targets: what a sample must have, as for `usable_sample`.
            seed, source: the run's number, and this source's in the run.
            worker, num_workers: this worker's number, from 0, of how many in all processes.
            shuffle_buffer, shuffle_buffer_megabytes: so many samples, or so much encoded data, and the buffer is full;
                the order depends on both.
            broken_limit: share of broken samples, of all read so far, above which the stream stops.

        Raises:
            UserError: from `next`: too much is broken; or every unit has been read since the last usable sample.
        """
        self.shards, self.pair = list(shards), tuple(pair)
        self.seed, self.source, self.worker, self.num_workers = seed, source, worker, num_workers
        self.max_samples, self.max_bytes = shuffle_buffer, shuffle_buffer_megabytes * 2**20
        self.broken_limit, self.targets = broken_limit, tuple(targets)
        self.seek(self._position(epoch=0, buffer=0, unit=0, sample=0, good=0, broken=0, offset=0))

    @property
    def position(self) -> Position:
        """The position of the next sample: how far the shards had been read when its buffer was filled, and its offset.

        "buffer" counts in the epoch, "unit" in what the epoch deals to this worker, "sample" in the unit's shard.
        """
        if self._buffer:
            return {**self._start, "offset": self._size - len(self._buffer)}
        return {**self._here(), "offset": self._skip}

    def seek(self, position: Position) -> None:
        """Go on at a position of one with the same arguments. Nothing is read before the next sample is wanted.

        Raises:
            UserError: the position is of another worker or of other shards.
        """
        self._tally = _Tally(self.shards, self.broken_limit, position["good"], position["broken"])
        given, own = (
            {key: p[key] for key in ("worker", "num_workers", "shards")} for p in (position, self._position())
        )
        if given != own:
            raise UserError(
                f"the checkpoint's position in the data is of worker {given['worker']} of {given['num_workers']} over "
                f"{given['shards']} shards, and this is worker {own['worker']} of {own['num_workers']} over "
                f"{own['shards']} for {self._tally.name}; go on with the shards and workers the run was started with"
            )
        self._epoch, self._number = position["epoch"], position["buffer"]
        self._unit, self._sample = position["unit"], position["sample"]
        self._skip: int = position["offset"]
        self._buffer: list[Sample] = []
        self._rest: Iterator[Sample] | None = None  # one that has read nothing can be sent to another process

    def __iter__(self) -> Iterator[Sample]:
        return self

    def __next__(self) -> Sample:
        self._load()
        return self._buffer.pop()

    def another(self, rng: np.random.Generator) -> Sample:
        """A random one of those that are still to come from the buffer; it will come nevertheless."""
        self._load()
        return self._buffer[int(rng.integers(len(self._buffer)))]

    def _load(self) -> None:
        """Have the next sample in the buffer."""
        while not self._buffer:
            self._fill()
            if self._skip:
                del self._buffer[-self._skip :]
                self._skip = 0

    def _position(self, **numbers: int) -> dict[str, int]:
        return {"worker": self.worker, "num_workers": self.num_workers, "shards": len(self.shards), **numbers}

    def _here(self) -> dict[str, int]:
        return self._position(
            epoch=self._epoch,
            buffer=self._number,
            unit=self._unit,
            sample=self._sample,
            good=self._tally.good,
            broken=self._tally.broken,
        )

    def _fill(self) -> None:
        """Fill the buffer, unless an epoch ends; its samples leave from the end of the list."""
        fruitless: set[WorkUnit] = set()
        samples: list[Sample] = []
        while not samples:
            self._start = self._here()
            held = 0
            self._rest = self._rest or self._read()
            for sample in self._rest:
                samples.append(sample)
                held += _num_bytes(sample)
                if len(samples) >= self.max_samples or held >= self.max_bytes:
                    break
            if not samples:
                if self._number == 0:
                    # Not one in the whole epoch. The next one deals other units to this worker, and it must not give
                    # up, nor go on for ever, as long as one of them may hold something.
                    fruitless.update(self._dealt())
                    if len(fruitless) == len(work_units(self.shards, self.num_workers)):
                        raise UserError(
                            f"{self._tally.name}: no usable sample for worker {self.worker} of {self.num_workers}; "
                            f"{self._tally.last}"
                        )
                self._epoch, self._number, self._unit, self._sample = self._epoch + 1, 0, 0, 0
                self._rest = None
        rng = np.random.default_rng([self.seed, self.source, BUFFERS, self.worker, self._epoch, self._number])
        self._buffer = [samples[i] for i in rng.permutation(len(samples))]
        self._size = len(samples)
        self._number += 1

    def _dealt(self) -> list[WorkUnit]:
        """What this worker reads in this epoch, in order."""
        every = work_units(self.shards, self.num_workers)
        order = np.random.default_rng([self.seed, self.source, UNITS, self._epoch]).permutation(len(every))
        return [every[i] for i in order[self.worker :: self.num_workers]]

    def _read(self) -> Iterator[Sample]:
        """The usable samples of the rest of the epoch in the order of the shards; moves ``_unit`` and ``_sample``."""
        lines = self._tally.lines
        for shard, part, parts in self._dealt()[self._unit :]:
            raws = raw_samples(shard, lines)
            deque(islice(raws, self._sample), maxlen=0)
            lines.clear()  # they were counted when these samples were read for the first time
            for raw in raws:
                mine = self._sample % parts == part
                self._sample += 1
                sample = usable_sample(raw, shard, self.pair, lines, self.targets) if mine else None
                self._tally.count(sample)
                if sample is not None:
                    yield sample
            self._tally.count()
            self._unit, self._sample = self._unit + 1, 0


def _num_bytes(sample: Sample) -> int:
    """How much encoded data a sample holds, of all its pictures and sounds."""
    media = [value for key, value in sample.inputs.items() if key != "text"]
    return sum(len(one) for value in media for one in (value if isinstance(value, list) else [value]))


class Mixture:
    """The endless sequence of samples of several sources for one worker, mixed by their weights."""

    def __init__(
        self,
        sources: Sequence[StreamShard],
        weights: Sequence[float],
        *,
        pair: int = 0,
        run: int = 1,
        picks: int = 0,
        position: Position | None = None,
    ):
        """
        Args:
            sources: one `StreamShard` of each source, of the same worker and seed.
            weights: each source's share of the samples, over the sum of all.
            pair: a number that tells this mixture from the others of the run.
            run: so many samples in a row come from one source; the batch size, where a batch is to be of one kind.
            picks: mixtures of one pair and seed that share this number choose the same sources in turn.
            position: where to go on; a `position` of the same mixture. The sources are moved with it.
        """
        self.sources = list(sources)
        self.shares = np.array(weights, float) / sum(weights)
        self.pair, self.run, self.picks, self.count = pair, run, picks, 0
        if position is not None:
            if len(position["sources"]) != len(self.sources):
                raise UserError(
                    f"the checkpoint's position in the data is of {len(position['sources'])} sources, and the recipe "
                    f"has {len(self.sources)}; go on with the sources the run was started with"
                )
            self.count = position["count"]
            for source, place in zip(self.sources, position["sources"], strict=True):
                source.seek(place)

    @property
    def position(self) -> Position:
        """How many places have been filled, and where each source stands."""
        return {"count": self.count, "sources": [source.position for source in self.sources]}

    def place(self) -> Iterator[Sample]:
        """The next sample, then others that can take its place.

        Those do not count: however many it takes, a run ends where it would have ended, in every process alike.
        """
        seed = self.sources[0].seed
        rng = np.random.default_rng([seed, self.pair, PICKS, self.picks, self.count // self.run])
        self.count += 1
        while True:
            yield next(self.sources[rng.choice(len(self.sources), p=self.shares)])

    def another(self, rng: np.random.Generator) -> Sample:
        """A random sample of those that are still to come, by weight; what comes next and the position stay."""
        return self.sources[rng.choice(len(self.sources), p=self.shares)].another(rng)
