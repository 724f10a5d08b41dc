"""Batches by step, and a loader that builds them ahead in worker processes.

A step's batches are a pure function of seed and step: each place in a batch is a position in the sequence of a reader
(reader.py). A run can therefore resume at any step, with any number of workers and processes.
"""

import signal
import zlib
from collections.abc import Generator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader

from onepeace.data.batch import Batch
from onepeace.data.builder import BatchBuilder
from onepeace.data.reader import MASK, VARY, Cursor, Reader, Source
from onepeace.errors import UserError

Step = tuple[list[Batch], dict[str, Cursor]]
"""A process's part of the batches of a step, one for each name, and the cursors of the readers by name."""


class Steps:
    """Sequence of steps by number.

    Args:
        builder: builder of the batches; its config is the recipe's data section.
        sources: sources in the order of the config.
        seed: seed of the run.
        batch_size: items per step over all processes, by name of the sources.
        cursors: cursors of an earlier step, from which later steps are found.
        rank, world_size: rank of this process, and number of processes.

    Raises:
        UserError: a batch cannot be divided evenly among the processes; see `Reader`.
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
        config = builder.config
        self.builder, self.batch_size, self.rank, self.world_size = builder, batch_size, rank, world_size
        self.readers: dict[str, Reader] = {}
        for name, source in builder.sources.items():
            size, label = batch_size[name], "+".join(source.pair)
            if size % world_size:
                raise UserError(
                    f"run.batch_size {size} of {name} cannot be shared evenly by {world_size} processes; set a multiple"
                )
            # A digest of the sources' modalities and name, the same in all runs.
            numbers = [seed, zlib.crc32((label if label == name else f"{label}:{name}").encode())]
            of_name = [source for source in sources if source.config.name == name]
            run = size if config.batches == "by_source" else 1
            self.readers[name] = Reader(of_name, numbers, config.shuffle_buffer, run, (cursors or {}).get(name))

    def __getitem__(self, step: int) -> Step:
        batches, cursors = [], {}
        for name, reader in self.readers.items():
            positions = self._positions(name, step)
            items = []
            for position in positions:
                vary = np.random.default_rng([*reader.seed, VARY, position])
                mask = np.random.default_rng([*reader.seed, MASK, position])
                items.append((reader.since(position), vary, mask))
            batches.append(self.builder.batch(name, reader.window(positions[0]), items))
            cursors[name] = reader.window(positions[-1]).cursor
            reader.fetch_ahead()
        return batches, cursors

    def open(self, step: int) -> None:
        """Read the shards of a step, so that forked workers inherit them."""
        for name, reader in self.readers.items():
            reader.window(self._positions(name, step)[0])

    def _positions(self, name: str, step: int) -> range:
        """Reader positions of this process's items of a step."""
        own = self.batch_size[name] // self.world_size
        first = step * self.batch_size[name] + self.rank * own
        return range(first, first + own)


def loader(steps: Steps, start: int, stop: int, workers: int = 1) -> Generator[Step, None, None]:
    """Yield ``steps[start]`` to ``steps[stop - 1]``, built ahead in ``workers`` processes (0 = on demand)."""
    batches = iter(
        DataLoader(
            range(start, stop),  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=partial(_made, steps),
            num_workers=workers,
            # The loader draws a seed for its workers, which would advance the global generator.
            generator=torch.Generator(),
            worker_init_fn=_leave_signals,
            pin_memory=torch.cuda.is_available(),
        )
    )
    try:
        for made in batches:
            if isinstance(made, UserError):
                raise made
            yield made
    finally:
        del batches  # ends the workers now, although the traceback of an error keeps this frame


def _made(steps: Steps, step: int) -> Step | UserError:
    """A step; a `UserError` is a value, as torch would wrap its message if a worker raised it."""
    try:
        return steps[step]
    except UserError as error:
        return error


def _leave_signals(worker: int) -> None:
    """Ignore SIGTERM and Ctrl-C, which reach every process of a job: the run needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
