"""The batches of every step, and the processes that make them ahead. Nothing here knows the model.

Sets in memory: a pair's items come in epochs, one seeded permutation each; step s takes the items s * B to (s + 1) * B
of that endless sequence, process r of R its share of them. So a step is a pure function of (seed, step): to resume is
to go on counting, with any number of workers and processes. Streams (streams.py) are read in order by each worker; a
batch carries the position after it, which a checkpoint keeps.
"""

import atexit
import multiprocessing.util
import re
import signal
import traceback
import weakref
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from onepeace.data.batch import Batch
from onepeace.data.builder import BatchBuilder
from onepeace.data.sample import Sample
from onepeace.data.shards import Source, expand
from onepeace.data.streams import Mixture, Position, StreamShard, processes_of
from onepeace.errors import UserError

ORDER, VARY, MASK = range(3)
"""Random streams that must differ."""


class Share(NamedTuple):
    """What of every step is this process's."""

    seed: int
    """The run's."""
    batch_size: Mapping[str, int]
    """Items of a step by pair, over all processes."""
    rank: int = 0
    world_size: int = 1

    def own(self, pair: str, world_size: int | None = None) -> int:
        """Items of one process; UserError when they cannot be shared evenly."""
        size, processes = self.batch_size[pair], world_size or self.world_size
        if size % processes:
            raise UserError(
                f"run.batch_size {size} of {pair} cannot be shared evenly by {processes} processes; set a multiple"
            )
        return size // processes


class EpochSampler:
    """The endless sequence of one pair's items: position -> item, the same on every machine.

    An item of a source with weight w comes floor(w) or ceil(w) times in an epoch; which ones come once more is drawn
    anew each epoch. With ``run`` above 1, so many items in a row are of one source, as far as that goes: a batch whose
    negatives are all of one kind is the harder task. What then does not fill the last run of an epoch is left out.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: Sequence[int], run: int = 1):
        self.seed = list(seed)
        self.run = run
        self.parts = []  # (first item, items, whole times, how many once more)
        first = 0
        for size, weight in zip(sizes, weights, strict=True):
            self.parts.append((first, size, int(weight), round((weight - int(weight)) * size)))
            first += size
        items = sum(size * whole + extra for _, size, whole, extra in self.parts)
        self.epoch_length = items - items % run
        if self.epoch_length == 0:
            given = f"weights {list(weights)} over {list(sizes)} items leave"
            if not items:
                raise UserError(f"{given} none; raise a weight")
            raise UserError(
                f"{given} {items} an epoch, too few for a batch of {run} by source; "
                f"lower run.batch_size to {items} or raise a weight"
            )
        self._cache: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.epoch_length)
        if self._cache[0] != epoch:
            self._cache = (epoch, self._draw(epoch))
        return int(self._cache[1][place])

    def _draw(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([*self.seed, epoch])
        parts = []
        for first, size, whole, extra in self.parts:
            part = [np.tile(np.arange(first, first + size), whole), first + rng.permutation(size)[:extra]]
            parts.append(rng.permutation(np.concatenate(part)))
        if self.run == 1:
            return rng.permutation(np.concatenate(parts))
        # Full runs of each source, then the rests of all of them, in runs too; the order of the runs is drawn.
        cut = [len(part) - len(part) % self.run for part in parts]
        rest = rng.permutation(np.concatenate([part[end:] for part, end in zip(parts, cut, strict=True)]))
        parts = [part[:end] for part, end in zip(parts, cut, strict=True)]
        runs = np.concatenate([*parts, rest[: len(rest) - len(rest) % self.run]]).reshape(-1, self.run)
        return rng.permutation(runs).reshape(-1)


class StepDataset(Dataset[list[Batch]]):
    """``dataset[s]`` is this process's part of the batches of step s: one of each pair, or of one where they come in
    turn; see `BatchBuilder`.

    Args:
        builder: makes the batches; its config lists the sources.
        sources: what the config's sources hold, in their order, as `read_source` gives it.
        share: this process's part.

    Raises:
        UserError: a batch cannot be shared evenly by the processes.
    """

    def __init__(self, builder: BatchBuilder, sources: Sequence[Source], share: Share):
        config = builder.config
        self.builder, self.share = builder, share
        self.in_turn = config.pairs == "in_turn"
        self.items: dict[str, list[Sample]] = {}
        self.order: dict[str, EpochSampler] = {}
        self.batch_size = {name: share.own(name) for name in builder.pairs}
        for name in builder.pairs:
            members = [(s, c.weight) for s, c in zip(sources, config.train, strict=True) if c.name == name]
            self.items[name] = [sample for source, _ in members for sample in source.samples]
            sizes = [len(source.samples) for source, _ in members]
            run = share.batch_size[name] if config.batches == "by_source" else 1
            weights = [weight for _, weight in members]
            self.order[name] = EpochSampler(sizes, weights, [share.seed, number(name), ORDER], run)

    def __getitem__(self, step: int) -> list[Batch]:
        names = list(self.builder.pairs)
        if self.in_turn:
            turn, which = divmod(step, len(names))
            return [self._batch(names[which], turn)]
        return [self._batch(name, step) for name in names]

    def _batch(self, name: str, step: int) -> Batch:
        size, items, order = self.batch_size[name], self.items[name], self.order[name]
        seed, rank = self.share.seed, self.share.rank
        first = (step * self.share.world_size + rank) * size
        places = [
            ((items[order[at]] for at in count(place)), np.random.default_rng([seed, number(name), VARY, place]))
            for place in range(first, first + size)
        ]
        mask_seed = seed_of(seed, number(name), MASK, step, *([rank] if rank else []))
        return self.builder.batch(name, places, lambda rng: items[int(rng.integers(len(items)))], len(items), mask_seed)


class DataState(NamedTuple):
    """Where a run stands in its streams: what a checkpoint holds of them, in plain numbers."""

    world_size: int
    """Number of processes the run was started with."""
    num_workers: int
    """Number of workers of each process. Worker w of process r has the number r * num_workers + w."""
    positions: dict[int, dict[str, Position]]
    """By worker and pair; a worker that is not here has not begun."""

    def gathered(self, positions: Sequence[Mapping[int, dict[str, Position]]]) -> dict[str, Any]:
        """As JSON holds it, with the positions of all processes; `read` is the inverse."""
        every = {str(worker): position for part in positions for worker, position in part.items()}
        return {**self._asdict(), "positions": every}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "DataState":
        positions = {int(worker): position for worker, position in value["positions"].items()}
        return cls(value["world_size"], value["num_workers"], positions)


class Streams(IterableDataset[tuple[list[Batch], dict[int, Any]]]):
    """Steps over sources that are read as they come, for a `DataLoader` of ``num_workers`` processes, or none.

    Yields a step's batches, and the positions after them of the workers they come from. Worker s % num_workers makes
    step s; without worker processes, one process makes the batches of all workers: they are the same.

    Args:
        builder, share: as for `StepDataset`.
        num_workers: of each process.
        state: where to go on. The number of processes may have changed; that of workers stays.
        first: the step to go on with.

    Raises:
        UserError: shards that are not there; batches or workers that cannot be shared evenly.
    """

    def __init__(
        self, builder: BatchBuilder, share: Share, num_workers: int = 1, state: DataState | None = None, first: int = 0
    ):
        self.builder, self.share, self.data, self.first = builder, share, builder.config, first
        self.state = state or DataState(share.world_size, max(num_workers, 1), {})
        self.num_workers = self.state.num_workers
        self.mine = processes_of(share.rank, share.world_size, self.state.world_size)
        self.batch_size = {name: share.own(name, self.state.world_size) for name in builder.pairs}
        self.shards = [expand(s.shards, self.data.root, self.data.allow_pipe) for s in self.data.train]

    def __iter__(self) -> Iterator[tuple[list[Batch], dict[int, Any]]]:
        info = get_worker_info()
        rows: dict[int, dict[str, Mixture]] = {}
        names = list(self.builder.pairs)
        for step in count(self.first + (info.id if info else 0), info.num_workers if info else 1):
            workers = [process * self.num_workers + step % self.num_workers for process in self.mine]
            rows.update({worker: self._rows(worker) for worker in workers if worker not in rows})
            # In turn, each pair has as many steps in a row as there are workers, so that each worker comes to read all.
            due = [names[step // self.num_workers % len(names)]] if self.data.pairs == "in_turn" else names
            batches = []
            for name in due:
                seen = sum(row[name].count for row in rows.values())
                batches.append(self._batch(name, [rows[worker][name] for worker in workers], seen))
            yield batches, {w: {name: row.position for name, row in rows[w].items()} for w in workers}

    def _rows(self, worker: int) -> dict[str, Mixture]:
        """The samples of each pair for one worker."""
        rows = {}
        for name in self.builder.pairs:
            members = [(i, source) for i, source in enumerate(self.data.train) if source.name == name]
            sources = [
                StreamShard(
                    self.shards[i],
                    source.pair,
                    seed=self.share.seed,
                    source=i,
                    worker=worker,
                    num_workers=self.state.world_size * self.num_workers,
                    shuffle_buffer=self.data.shuffle_buffer,
                    shuffle_buffer_megabytes=self.data.shuffle_buffer_megabytes,
                    broken_limit=self.data.broken_limit,
                    targets=source.targets,
                )
                for i, source in members
            ]
            by_source = self.data.batches == "by_source"
            rows[name] = Mixture(
                sources,
                [source.weight for _, source in members],
                pair=number(name),
                run=self.batch_size[name] if by_source else 1,
                # What the processes make of one step is one batch, and of one source.
                picks=worker % self.num_workers if by_source else worker,
                position=self.state.positions.get(worker, {}).get(name),
            )
        return rows

    def _batch(self, name: str, rows: Sequence[Mixture], seen: int) -> Batch:
        numbers = [(row, [self.share.seed, number(name), VARY, row.sources[0].worker, row.count]) for row in rows]
        mask_seed = seed_of(MASK, *numbers[0][1])
        places: list[tuple[Iterator[Sample], np.random.Generator]] = [
            (row.place(), np.random.default_rng([*seed, i]))
            for row, seed in numbers
            for i in range(self.batch_size[name])
        ]
        return self.builder.batch(name, places, rows[0].another, seen + len(places), mask_seed)


def loader(
    steps: StepDataset | Streams, start: int, stop: int, workers: int = 1
) -> Generator[tuple[list[Batch], dict[int, Any]], None, None]:
    """The batches of the steps ``start`` to ``stop`` - 1, made ahead in ``workers`` processes (0 = on demand), and the
    positions of the streams after each; none where the data is in memory."""
    stream = isinstance(steps, Streams)
    batches = DataLoader(
        steps,
        batch_size=None,
        sampler=None if stream else range(start, stop),
        num_workers=workers,
        # Its own generator: the loader draws a seed for its workers, and would move the run's generator.
        generator=torch.Generator(),
        worker_init_fn=_leave_sigterm,
        pin_memory=torch.cuda.is_available(),
    )
    others = multiprocessing.active_children()
    rest = iter(batches)  # starts the workers
    _workers.update(set(multiprocessing.active_children()).difference(others))
    try:
        for made in islice(rest, stop - start):
            yield made if stream else (made, {})
    except Exception as error:
        if not re.match(r"Caught \w+ in \w+ ", str(error)):
            raise
        # Close the workers now. Torch's error is in a cycle with its own frames, that hold the iterator. Of a cycle the
        # collector ends the queues first, and workers that are never told to stop are waited for in vain, 10 seconds.
        traceback.clear_frames(error.__traceback__)
        del rest
        # What torch raises for a worker's error has its whole traceback as message; the last line says what it was.
        last = str(error).strip().splitlines()[-1]
        if isinstance(error, UserError):
            raise UserError(re.sub(r"^[\w.]+Error: ", "", last)) from error
        raise RuntimeError(f"a worker that makes batches failed: {last}") from error


def _leave_sigterm(worker: int) -> None:
    """A scheduler sends SIGTERM to every process of a job; the run saves then, and needs its workers until it has."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_workers: "weakref.WeakSet[multiprocessing.process.BaseProcess]" = weakref.WeakSet()
"""Those that a loader has started. No others may be killed: a process pool would wait for them without end."""


@atexit.register  # after multiprocessing's own, which was imported before, so this runs first
def _end_workers() -> None:
    """Kill workers that nothing has closed, say because an exception still holds their loader.

    At exit multiprocessing sends them SIGTERM, which ours leave to the run, and would wait for them without end.
    """
    workers = [child for child in multiprocessing.active_children() if child in _workers]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call their end a failure
    for worker in workers:
        worker.kill()


def number(name: str) -> int:
    """Of a pair, the same in every run."""
    return zlib.crc32(name.encode())


def seed_of(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
