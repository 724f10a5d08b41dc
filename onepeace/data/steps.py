"""Batches by step, and a loader that builds them ahead in worker processes.

A step's batches are a pure function of seed and step (reader.py). A run can therefore resume at any step, with any
number of workers and processes.
"""

import logging
import signal
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from onepeace.data.batch import Batch
from onepeace.data.broken import Broken
from onepeace.data.builder import BatchBuilder
from onepeace.data.prefetch import THREADS, Prefetch
from onepeace.data.reader import Cursor, Reader
from onepeace.data.source import Source
from onepeace.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Step:
    """A process's part of a step."""

    batches: list[Batch]
    """One for each name of sources."""
    cursors: dict[str, Cursor]
    """Cursor of each lane of this process, by "name/lane"."""
    digests: NDArray[np.int64]
    """(D,): digests of what each lane reads in this step; see `Steps.digest_names`. 0 for lanes of other processes."""
    listed: NDArray[np.int64]
    """(S, 2): for each source, number of samples and of shards in the windows of this step."""
    broken: list[Broken]
    """Broken samples and shards that were met."""

    def pin_memory(self) -> "Step":
        """The step with batches in page-locked memory; torch's DataLoader calls it."""
        return replace(self, batches=[batch.pin_memory() for batch in self.batches])


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
        self.builder = builder
        self.sources = list(sources)
        self.batch_size = batch_size
        self.readers: dict[str, Reader] = {}
        self._prefetch = Prefetch(builder.config.cache_gigabytes * 1e9)
        for name in builder.sources:
            size = batch_size[name]
            if size % world_size:
                raise UserError(
                    f"run.batch_size {size} of {name} cannot be shared evenly by {world_size} processes; set a multiple"
                )
            rows = size // world_size
            self.readers[name] = Reader(
                sources=[source for source in sources if source.config.name == name],
                data=builder.config,
                seed=seed,
                batch_size=size,
                rows=range(rank * rows, (rank + 1) * rows),
                cursors=cursors,
            )

    @property
    def digest_names(self) -> list[str]:
        """Name of the lane or list of shards behind each of a step's digests."""
        return [name for reader in self.readers.values() for name in reader.digest_names()]

    def __getitem__(self, step: int) -> Step:
        batches: list[Batch] = []
        cursors: dict[str, Cursor] = {}
        digests: list[NDArray[np.int64]] = []
        broken: list[Broken] = []
        coming_shards: list[str] = []
        for name, reader in self.readers.items():
            reader.release(step)
            batch, broken_samples = self.builder.batch(name, reader.items(step))
            batches.append(batch)
            cursors.update(reader.cursors(step))
            digests.append(reader.digests(step))
            broken += reader.take_broken()
            broken += broken_samples
            coming_shards += reader.coming_shards()
        self._prefetch.ask(coming_shards)
        return Step(
            batches=batches,
            cursors=cursors,
            digests=np.concatenate(digests),
            listed=self._listed(step),
            broken=broken,
        )

    def _listed(self, step: int) -> NDArray[np.int64]:
        listed = np.zeros((len(self.sources), 2), np.int64)
        for reader in self.readers.values():
            for _, window in reader.windows(step):
                for candidates in window.shards:
                    listed[candidates.source.number] += (len(candidates), 1)
        return listed

    def open(self, step: int) -> None:
        """Draw the windows of a step, so that forked workers inherit them; remote shards are copied in threads."""
        with ThreadPoolExecutor(THREADS) as threads:
            for reader in self.readers.values():
                list(threads.map(partial(reader.open, step), reader.lanes))
        self._check_cache(step)

    def _check_cache(self, step: int) -> None:
        """Warn of a cache that does not hold the copies of the shards that are read at a time, and of the next ones."""
        copied_bytes = 0
        for reader in self.readers.values():
            for _, window in reader.windows(step):
                copied_bytes += sum(candidates.shard.copied_bytes for candidates in window.shards)
        gigabytes = 2 * copied_bytes / 1e9
        if gigabytes > self.builder.config.cache_gigabytes:
            log.warning(
                "data.cache_gigabytes is %g, too little for the shards read at a time; raise it to %.1f",
                self.builder.config.cache_gigabytes,
                gigabytes,
            )


def loader(
    steps: Steps,
    start: int,
    stop: int,
    workers: int = 1,
) -> Generator[Step, None, None]:
    """Yield ``steps[start]`` to ``steps[stop - 1]``, built ahead in ``workers`` processes (0 = on demand)."""
    made_steps = iter(
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
        for result in made_steps:
            if isinstance(result, UserError):
                raise result
            yield result
    finally:
        del made_steps  # ends the workers now, although the traceback of an error keeps this frame


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
