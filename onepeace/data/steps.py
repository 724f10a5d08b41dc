"""The batches of every step, and the processes that make them ahead. Nothing here knows the model.

Sets in memory: a pair's items come in epochs, one seeded permutation each; step s takes the items s * B to (s + 1) * B
of that endless row, process r of R its share of them. So a step is a pure function of (seed, step): to resume is to go
on counting, with any number of workers and processes. Streams (streams.py) are read once in a row by each lane; a
batch carries the place after it, which a checkpoint keeps.
"""

import atexit
import multiprocessing.util
import re
import signal
import weakref
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from onepeace.data.batches import Batch, BatchBuilder, Lengths
from onepeace.data.sample import Sample
from onepeace.data.shards import Source, expand
from onepeace.data.streams import Mixture, Position, StreamShard, stream_shards_of
from onepeace.errors import UserError

ORDER, VARY, HIDE = range(3)
"""Streams of random numbers that must not be the same."""


class EpochSampler:
    """The endless row of one pair's items: position -> item, the same on every machine.

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
    """``steps[s]`` is this process's part of the batches of step s, one for each pair of the recipe, or one where they
    come in turn; see `BatchBuilder`."""

    def __init__(
        self,
        recipe: Any,
        sources: Sequence[Source],
        processors: Mapping[str, Any],
        num_tokens: Mapping[str, Lengths] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ):
        """
        Args:
            recipe, processors, num_tokens: as for `BatchBuilder`.
            sources: what ``recipe.data.train`` names, in its order, as `read_source` gives it.
            rank, ranks: this process, of how many.

        Raises:
            UserError: a batch cannot be shared evenly by the processes.
        """
        if len(sources) != len(recipe.data.train):
            raise ValueError(f"{len(sources)} sources for {len(recipe.data.train)} of the recipe")
        self.builder = BatchBuilder(recipe, processors, num_tokens)
        self.seed, self.rank = recipe.seed, rank
        self.items: dict[str, list[Sample]] = {}
        self.order: dict[str, EpochSampler] = {}
        self.in_turn = recipe.data.pairs == "in_turn"
        self.batch_size = {name: shared(recipe.batch_size(name), name, ranks) for name in self.builder.pairs}
        self.ranks = ranks
        weighted: dict[str, list[tuple[Source, float]]] = {}
        for source, config in zip(sources, recipe.data.train, strict=True):
            weighted.setdefault(config.name, []).append((source, config.weight))
        for name, members in weighted.items():
            self.items[name] = [sample for source, _ in members for sample in source.samples]
            sizes = [len(source.samples) for source, _ in members]
            run = recipe.batch_size(name) if recipe.data.batches == "by_source" else 1
            weights = [weight for _, weight in members]
            self.order[name] = EpochSampler(sizes, weights, [self.seed, number(name), ORDER], run)

    def __getitem__(self, step: int) -> list[Batch]:
        names = list(self.builder.pairs)
        if self.in_turn:
            turn, which = divmod(step, len(names))
            return [self._batch(names[which], turn)]
        return [self._batch(name, step) for name in names]

    def _batch(self, name: str, step: int) -> Batch:
        size, items, order = self.batch_size[name], self.items[name], self.order[name]
        first = (step * self.ranks + self.rank) * size
        places = [
            ((items[order[at]] for at in count(place)), np.random.default_rng([self.seed, number(name), VARY, place]))
            for place in range(first, first + size)
        ]
        hide = seed_of(self.seed, number(name), HIDE, step, *([self.rank] if self.rank else []))
        return self.builder.batch(name, places, lambda rng: items[int(rng.integers(len(items)))], len(items), hide)


class DataState(NamedTuple):
    """Where a run stands in its streams: what a checkpoint holds of them, in plain numbers."""

    ranks: int
    """Processes the run was started with,"""
    workers: int
    """and workers of each: lane r * workers + w belongs to worker w of process r."""
    lanes: dict[int, dict[str, Position]]
    """By lane and pair; a lane that is not here has not begun."""

    def everywhere(self, lanes: Sequence[Mapping[int, dict[str, Position]]]) -> dict[str, Any]:
        """As JSON holds it, of the lanes of all processes; `read` is the inverse."""
        return {**self._asdict(), "lanes": {str(lane): place for part in lanes for lane, place in part.items()}}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> "DataState":
        return cls(value["ranks"], value["workers"], {int(lane): place for lane, place in value["lanes"].items()})


class Streams(IterableDataset[tuple[list[Batch], dict[int, Any]]]):
    """StepDataset over sources that are read as they come, for a `DataLoader` of ``workers`` processes, or none.

    Yields a step's batches, and the places after them of the lanes they come from. Worker s % workers makes step s;
    where they have no processes, one plays them all, so that the batches are the same.
    """

    def __init__(
        self,
        recipe: Any,
        processors: Mapping[str, Any],
        num_tokens: Mapping[str, Lengths] | None = None,
        rank: int = 0,
        ranks: int = 1,
        places: DataState | None = None,
        first: int = 0,
    ):
        """
        Args:
            recipe, processors, num_tokens, rank, ranks: as for `StepDataset`.
            places: where to go on; the number of processes may be another than then, the workers stay as many.
            first: the step to go on with.

        Raises:
            UserError: shards that are not there; batches or lanes that cannot be shared evenly.
        """
        self.builder = BatchBuilder(recipe, processors, num_tokens)
        self.seed, self.data, self.first = recipe.seed, recipe.data, first
        self.places = places or DataState(ranks, max(recipe.run.workers, 1), {})
        self.workers = self.places.workers
        self.mine = stream_shards_of(rank, ranks, self.places.ranks)
        self.batch_size = {n: shared(recipe.batch_size(n), n, self.places.ranks) for n in self.builder.pairs}
        self.shards = [expand(s.shards, recipe.data.root, recipe.data.allow_pipe) for s in recipe.data.train]

    def __iter__(self) -> Iterator[tuple[list[Batch], dict[int, Any]]]:
        info = get_worker_info()
        rows: dict[int, dict[str, Mixture]] = {}
        names = list(self.builder.pairs)
        for step in count(self.first + (info.id if info else 0), info.num_workers if info else 1):
            lanes = [rank * self.workers + step % self.workers for rank in self.mine]
            rows.update({lane: self._rows(lane) for lane in lanes if lane not in rows})
            # In turn, each pair has as many steps in a row as there are workers, so that each worker comes to read all.
            due = [names[step // self.workers % len(names)]] if self.data.pairs == "in_turn" else names
            batches = []
            for name in due:
                seen = sum(row[name].count for row in rows.values())
                batches.append(self._batch(name, [rows[lane][name] for lane in lanes], seen))
            yield batches, {lane: {name: row.position for name, row in rows[lane].items()} for lane in lanes}

    def _rows(self, lane: int) -> dict[str, Mixture]:
        """The row of samples of each pair in one lane."""
        rows = {}
        for name in self.builder.pairs:
            members = [(i, source) for i, source in enumerate(self.data.train) if source.name == name]
            sources = [
                StreamShard(
                    self.shards[i],
                    source.pair,
                    seed=self.seed,
                    source=i,
                    lane=lane,
                    lanes=self.places.ranks * self.workers,
                    shuffle_buffer=self.data.shuffle_buffer,
                    shuffle_buffer_megabytes=self.data.shuffle_buffer_megabytes,
                    broken_limit=self.data.broken_limit,
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
                picks=lane % self.workers if by_source else lane,
                position=self.places.lanes.get(lane, {}).get(name),
            )
        return rows

    def _batch(self, name: str, rows: Sequence[Mixture], seen: int) -> Batch:
        numbers = [(row, [self.seed, number(name), VARY, row.sources[0].lane, row.count]) for row in rows]
        hide = seed_of(HIDE, *numbers[0][1])
        places: list[tuple[Iterator[Sample], np.random.Generator]] = [
            (row.place(), np.random.default_rng([*seed, i]))
            for row, seed in numbers
            for i in range(self.batch_size[name])
        ]
        return self.builder.batch(name, places, rows[0].another, seen + len(places), hide, keep_loaded=False)


def shared(size: int, name: str, ranks: int) -> int:
    """Items of one process."""
    if size % ranks:
        raise UserError(f"run.batch_size {size} of {name} cannot be shared evenly by {ranks} processes; set a multiple")
    return size // ranks


def loader(
    steps: StepDataset | Streams, start: int, stop: int, workers: int = 1
) -> Generator[tuple[list[Batch], dict[int, Any]], None, None]:
    """The batches of the steps ``start`` to ``stop`` - 1, made ahead in ``workers`` processes (0 = on demand), and the
    places of the streams after each; none where the data is in memory."""
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
