"""The batches of every step, and the processes that make them ahead. Nothing here knows the model.

A step's batches are a pure function of seed and step: each place of a batch is a position in its pair's sequence
(reader.py). So to resume is to go on counting, with any number of workers and processes.
"""

import re
import signal
import traceback
import zlib
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from onepeace.data.batch import Batch
from onepeace.data.builder import BatchBuilder
from onepeace.data.reader import MASK, VARY, Cursor, Lane, Source
from onepeace.errors import UserError


class Steps(Dataset[tuple[list[Batch], dict[str, Cursor]]]):
    """``steps[s]`` is this process's part of the batches of step s, one of each pair, and the cursors of the lanes they
    are from.

    Args:
        builder: makes the batches; its config is the recipe's data.
        sources: in the order of the config.
        seed: the run's.
        batch_size: items of a step by pair, over all processes.
        cursors: by pair and lane, as an earlier step gave them; later steps are found from there.
        rank, world_size: number of this process, and of all.

    Raises:
        UserError: a batch cannot be shared evenly by the processes, or the lanes; see `Lane`.
    """

    def __init__(
        self,
        builder: BatchBuilder,
        sources: Sequence[Source],
        seed: int,
        batch_size: Mapping[str, int],
        cursors: Mapping[str, Cursor] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        config, known = builder.config, cursors or {}
        self.builder, self.seed, self.batch_size = builder, seed, batch_size
        self.rank, self.world_size = rank, world_size
        self.lanes: dict[str, list[Lane]] = {}
        for name in builder.pairs:
            size = batch_size[name]
            for count, what in ((world_size, "processes"), (config.lanes, "lanes")):
                if size % count:
                    raise UserError(
                        f"run.batch_size {size} of {name} cannot be shared evenly by {count} {what}; set a multiple"
                    )
            own = [source for source in sources if source.config.name == name]
            run = size if config.batches == "by_source" else 1
            self.lanes[name] = [
                Lane(
                    own, [seed, self._number(name)], config.shuffle_buffer, run, lane, config.lanes,
                    known.get(f"{name}/{lane}"),
                )
                for lane in range(config.lanes)
            ]  # fmt: skip

    def __getitem__(self, step: int) -> tuple[list[Batch], dict[str, Cursor]]:
        cursors: dict[str, Cursor] = {}
        return [self._batch(name, step, cursors) for name in self.lanes], cursors

    def open(self, step: int) -> None:
        """Read the shards that a step begins with, so that the workers have them from this process."""
        for name in self.lanes:
            _, lane, position = self._places(name, step)[0]
            lane.window(position)

    def _places(self, name: str, step: int) -> list[tuple[int, Lane, int]]:
        """For each item of this process its number among all of the pair, its lane, and its position there. The places
        of a batch are shared out to the processes, and to the lanes, in order."""
        size, lanes = self.batch_size[name], self.lanes[name]
        own, share = size // self.world_size, size // len(lanes)
        slots = range(self.rank * own, (self.rank + 1) * own)
        return [(step * size + slot, lanes[slot // share], step * share + slot % share) for slot in slots]

    def _number(self, name: str) -> int:
        """A number of the sources' modalities and name, the same in every run."""
        pair = "+".join(self.builder.pairs[name])
        return zlib.crc32((pair if pair == name else f"{pair}:{name}").encode())

    def _batch(self, name: str, step: int, cursors: dict[str, Cursor]) -> Batch:
        seed, places = [self.seed, self._number(name)], self._places(name, step)
        items = [
            (lane.since(position), np.random.default_rng([*seed, VARY, number])) for number, lane, position in places
        ]
        of_rank = [self.rank] if self.rank else []
        mask_seed = int(np.random.SeedSequence([*seed, MASK, step, *of_rank]).generate_state(1, np.uint64)[0])
        _, first, position = places[0]
        batch = self.builder.batch(first.window(position), items, mask_seed)
        for _, lane, position in places:
            cursors[f"{name}/{lane.lane}"] = lane.window(position).cursor
            lane.fetch_ahead()
        return batch


def loader(
    steps: Dataset[Any], start: int, stop: int, workers: int = 1
) -> Generator[tuple[list[Batch], dict[str, Cursor]], None, None]:
    """``steps[start]`` to ``steps[stop - 1]``, made ahead in ``workers`` processes (0 = on demand)."""
    batches = DataLoader(
        steps,
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        # Its own generator: the loader draws a seed for its workers, and would move the run's generator.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals,
        pin_memory=torch.cuda.is_available(),
    )
    rest = iter(batches)  # starts the workers
    try:
        yield from rest
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


def _leave_signals(worker: int) -> None:
    """A scheduler sends SIGTERM to every process of a job, as a terminal does Ctrl-C; the run saves then, and needs its
    workers until it has."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
