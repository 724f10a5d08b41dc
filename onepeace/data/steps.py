"""Batches by step, a loader that builds them ahead in worker processes, and the account of what is lost.

A step's batches are a pure function of seed and step (reader.py). A run can therefore resume at any step, with any
number of workers and processes.
"""

import logging
import os
import signal
import zlib
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from onepeace.data.batch import Batch
from onepeace.data.builder import BatchBuilder
from onepeace.data.order import fetches
from onepeace.data.reader import Cursor, Lane, Reader
from onepeace.data.shard import FETCHING
from onepeace.data.source import Losses, Lost, Source, log_lost
from onepeace.errors import UserError
from onepeace.files.source import scheme

log = logging.getLogger(__name__)

COUNTS = "counts"
"""Name, among the cursors of a checkpoint, of the numbers of samples that were drawn and broken."""
TOLD = 1000
"""Maximum number of broken samples that a process names; others are only counted."""


@dataclass(frozen=True, eq=False)
class Step:
    """A process's part of a step."""

    batches: list[Batch]
    """One for each name of sources."""
    cursors: dict[str, Cursor]
    """Cursor of each lane of this process, by "name/lane"."""
    drawn: list[int]
    """Number of samples of each source that were drawn, with broken ones."""
    lost: list[Lost]
    """Shards that could not be read, and broken samples, which others have replaced."""

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
        self.rank = rank
        machines = max(1, world_size // int(os.environ.get("LOCAL_WORLD_SIZE", world_size)))
        self.readers: dict[str, Reader] = {}
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
                machines=machines,
                cursors=cursors,
            )

    def __getitem__(self, step: int) -> Step:
        batches: list[Batch] = []
        cursors: dict[str, Cursor] = {}
        for name, reader in self.readers.items():
            reader.release(step)
            batches.append(self.builder.batch(name, reader.items(step)))
            cursors.update(reader.cursors(step))
        drawn: list[int] = []
        lost: list[Lost] = []
        for source in self.sources:
            drawn.append(source.drawn)
            lost += source.lost
            source.drawn = 0
            source.lost = []
        return Step(batches, cursors, drawn, lost)

    def open(self, step: int) -> None:
        """Draw the windows of a step, so that forked workers inherit them; remote shards are copied in threads.

        The first process says how often remote shards are fetched. Warns of a cache that does not hold the copies of
        the shards that are read at a time, and of the next ones.
        """
        if self.rank == 0:
            self._tell_fetches()
        copied_bytes = 0
        with ThreadPoolExecutor(FETCHING) as threads:
            for reader in self.readers.values():
                list(threads.map(partial(Lane.window, position=step * reader.share), reader.lanes.values()))
                for _, window in reader.windows(step):
                    files = [candidates.shard.file for candidates in window.shards]
                    copied_bytes += sum(file.state.size for file in files if file.is_copy)
        gigabytes = 2 * copied_bytes / 1e9
        if gigabytes > self.builder.config.cache_gigabytes:
            log.warning(
                "data.cache_gigabytes is %g, too little for the shards read at a time; raise it to %.1f",
                self.builder.config.cache_gigabytes,
                gigabytes,
            )

    def _tell_fetches(self) -> None:
        """Log how often each remote shard is fetched in an epoch, and how it would be once."""
        for name, reader in self.readers.items():
            addresses = [shard for source in reader.sources for shard in source.shards if scheme(shard)]
            if not addresses:
                continue
            times = fetches(reader.num_lanes, reader.machines)
            remedy = ""
            if times > 1:
                remedy = f"; for once set data.batches=mixed, and data.lanes to a multiple of {reader.machines}"
            log.info(
                "%s: each of %d shards is fetched %.3g times an epoch (machines: %d, lanes: %d)%s",
                name,
                len(addresses),
                times,
                reader.machines,
                reader.num_lanes,
                remedy,
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


class Account:
    """Account of what all processes of a run have lost: ``add`` each step; every few steps ``merge`` what all ``own``.

    Each process merges the same, so that all of them stop at the same step with the same message if too much is lost,
    or if they read different data.

    Args:
        steps: the steps of this process.
        cursors: cursors of the checkpoint that the run continues from, with its counts.
    """

    def __init__(self, steps: Steps, cursors: Mapping[str, Cursor]) -> None:
        self.losses = [Losses(source) for source in steps.sources]
        """Losses of all processes, by source."""
        for number, losses in enumerate(self.losses):
            losses.drawn = cursors.get(COUNTS, {}).get(f"{number} drawn", 0)
            losses.broken = cursors.get(COUNTS, {}).get(f"{number} broken", 0)
        self._names = [[os.path.basename(shard) for shard in source.shards] for source in steps.sources]
        self._cursors: dict[str, Cursor] = {}
        self._drawn = [0] * len(self.losses)
        self._broken = [0] * len(self.losses)
        self._unreadable: list[Lost] = []
        self._examples: dict[int, str] = {}
        """Line of the first loss of each source in this process."""
        self._lines: list[str] = []
        """Lines that are not logged yet."""
        self._told: set[str] = set()

    def add(self, step: Step) -> None:
        """Add the next step of this process."""
        self._cursors = step.cursors
        for number, drawn in enumerate(step.drawn):
            self._drawn[number] += drawn
        for lost in step.lost:
            if lost.shard is None:
                self._broken[lost.source] += 1
            else:
                self._unreadable.append(lost)
            self._examples.setdefault(lost.source, lost.reason)
            if lost.reason not in self._told and len(self._told) < TOLD:
                self._told.add(lost.reason)
                self._lines.append(lost.reason)

    def own(self) -> dict[str, Any]:
        """Account of this process, as plain numbers and text."""
        return {
            "names": zlib.crc32(repr(self._names).encode()),
            "cursors": self._cursors,
            "drawn": self._drawn,
            "broken": self._broken,
            "unreadable": self._unreadable,
            "examples": self._examples,
        }

    def merge(self, told: Sequence[Mapping[str, Any]]) -> None:
        """Take over what each process has told; its own losses that are new are logged.

        Raises:
            UserError: too much of a source is lost, or two processes read different data.
        """
        _check_agreement(told)
        log_lost(self._lines, "replaced by others")
        unreadable = [lost for part in told for lost in part["unreadable"]]
        for number, losses in enumerate(self.losses):
            losses.add_unreadable([lost for lost in unreadable if lost.source == number])
            losses.drawn += sum(part["drawn"][number] for part in told)
            losses.broken += sum(part["broken"][number] for part in told)
            examples = [part["examples"][number] for part in told if number in part["examples"]]
            losses.check(next(iter(examples), "see the log"))
        self._drawn = [0] * len(self.losses)
        self._broken = [0] * len(self.losses)
        self._unreadable = []
        self._lines = []

    @property
    def lost_shards(self) -> int:
        """Number of shards that could not be read in this or the last epoch."""
        return sum(len(losses.unreadable) for losses in self.losses)

    def state(self) -> dict[str, Cursor]:
        """The counts, for a checkpoint."""
        counts: dict[str, int] = {}
        for number, losses in enumerate(self.losses):
            counts[f"{number} drawn"] = losses.drawn
            counts[f"{number} broken"] = losses.broken
        return {COUNTS: counts}


def _check_agreement(told: Sequence[Mapping[str, Any]]) -> None:
    """`UserError` if two processes have other shards, or if the windows of a lane that they share begin elsewhere or
    have another number of samples."""
    first_of_lane: dict[str, int] = {}
    for rank, part in enumerate(told):
        differs_from = rank
        if part["names"] != told[0]["names"]:
            differs_from = 0
        for lane, cursor in part["cursors"].items():
            first = first_of_lane.setdefault(lane, rank)
            if cursor != told[first]["cursors"][lane]:
                differs_from = first
        if differs_from != rank:
            raise UserError(
                f"processes {differs_from} and {rank} read different data: the shards of their machines differ, or one "
                "cannot read them; compare the shards, and resume from the last checkpoint"
            )
