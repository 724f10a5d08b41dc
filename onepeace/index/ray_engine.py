"""Embedding over Ray Data: actors on one machine or on all of a cluster hold the model.

desk -> read (one task, which goes on until the desk says so) -> map_batches (actors with the model) -> iter_batches

A row is the number of a chunk, and becomes its answers. Chunks come from the process that writes the index, which reads
and recognises files while others are embedded: so they are no list that Ray Data could be given, but wait at a desk, an
actor, where the read task learns of them and the actors with the model fetch them. Ray gives a row to an actor again
when the first has died of it; the desk knows that it was begun before, and its files are then tried one by one. What is
embedded already is known by the index: the row-level checkpoints of Ray Data would say it a second time.
"""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from onepeace.errors import UserError, need, one_line
from onepeace.index.spread import Chunk, Done, Journal, Lost, Model, embed

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

ROOM = 3
"""Chunks for each actor that are on their way: one that it computes, those that Ray moves meanwhile."""
LOADING, EMBEDDING = "loading", "embedding"
"""Stages of a row."""


class Desk:
    """Where chunks wait."""

    def __init__(self) -> None:
        self._numbers: asyncio.Queue[int | None] = asyncio.Queue()
        self._chunks: dict[int, Chunk] = {}
        self._begun: dict[int, str] = {}

    async def put(self, number: int, chunk: Chunk) -> None:
        self._chunks[number] = chunk
        await self._numbers.put(number)

    async def finish(self) -> None:
        """There will be no more."""
        await self._numbers.put(None)

    async def next(self) -> int | None:
        """The number of the next chunk, when there is one; None when there will be no more."""
        return await self._numbers.get()

    async def begin(self, number: int, stage: str) -> tuple[Chunk, str | None]:
        """An actor begins a stage of a chunk; gives the chunk, and the last stage of it that was begun before."""
        before, self._begun[number] = self._begun.get(number), stage
        return self._chunks[number], before

    async def end(self, number: int) -> None:
        """The answers to a chunk have come back."""
        del self._chunks[number], self._begun[number]


class Actor:
    """What embeds chunks."""

    def __init__(self, model: Model, desk: Any) -> None:
        self._model, self._desk = model, desk
        self._embedder: Any = None
        self._journal = Journal()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        outcome = np.empty(1, object)
        outcome[0] = self._outcome(int(row["number"][0]))
        return {"number": row["number"], "outcome": outcome}

    def _outcome(self, number: int) -> Done | Lost | str:
        """What has become of a chunk, or why none can be embedded."""
        import ray

        try:
            chunk, before = ray.get(self._desk.begin.remote(number, LOADING))
            if before == LOADING and self._embedder is None:
                return "an actor was killed while it loaded the model; if memory is short, take fewer --workers"
            if before == EMBEDDING:
                return Lost([chunk], "its actor was killed")
            if self._embedder is None:  # not when the actor is made: one that dies then is made again for ever
                self._embedder = self._model.load()
            ray.get(self._desk.begin.remote(number, EMBEDDING))
            (done,) = embed(self._embedder, chunk, self._journal, lambda options: None)
        except UserError as error:
            return str(error)
        except Exception as error:
            return f"an actor failed: {type(error).__name__}: {one_line(error)}"
        return done


class Actors:
    """A `Crew` of Ray's actors: on the cluster that is running here, or else in processes of this machine.

    Args:
        model: with the device that all take. None is a GPU for each actor, where the cluster has any.
        size: how many; None: as many as there are GPUs, and without GPUs one for each machine.

    Raises:
        UserError: Ray is not installed, or cannot be started.
    """

    def __init__(self, model: Model, size: int | None) -> None:
        need("ray.data", "ray")
        import ray

        from onepeace.device import may_be_gpu

        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.CRITICAL)
            except Exception as error:
                raise UserError(f"Ray cannot be started: {one_line(error)}") from error
        there = ray.cluster_resources()
        has_gpu = there.get("GPU", 0) >= 1 and may_be_gpu(model.device)
        machines = sum(node["Alive"] for node in ray.nodes())
        self.size = size or (int(there["GPU"]) if has_gpu else machines)
        share = there.get("CPU", 1) / self.size
        needs = {"num_gpus": 1.0} if has_gpu else {"num_cpus": float(int(share)) if share >= 1 else share}
        self._desk: Any = ray.remote(num_cpus=0)(Desk).remote()
        self._pending: set[int] = set()
        """Numbers of the chunks whose answers have not come back."""
        self._next = 0
        self._rows: queue.SimpleQueue[tuple[int, Done | Lost | str] | Exception] = queue.SimpleQueue()
        dataset = _dataset(self._desk, model, self.size, needs)
        self._reader = threading.Thread(target=self._read, args=(dataset,), daemon=True)
        self._reader.start()

    def has_room(self, alone: bool) -> bool:
        return len(self._pending) < ROOM * self.size

    def give(self, chunk: Chunk) -> None:
        import ray

        self._pending.add(self._next)
        ray.get(self._desk.put.remote(self._next, chunk))
        self._next += 1

    def take(self) -> Done | Lost:
        row = self._rows.get()
        if isinstance(row, Exception):
            raise UserError(f"Ray: {one_line(row)}") from row
        number, outcome = row
        self._desk.end.remote(number)
        self._pending.remove(number)
        if isinstance(outcome, str):
            raise UserError(outcome)
        return outcome

    def close(self) -> None:
        import ray

        if self._pending:  # Ray ends with this process: the reader would start another one if it ended before
            ray.kill(self._desk)
            return
        ray.get(self._desk.finish.remote())
        self._reader.join()
        if self._is_ours:
            ray.shutdown()

    def _read(self, dataset: "Dataset") -> None:
        """In a thread, as rows come back while others are given."""
        try:
            row: Any
            for row in dataset.iter_batches(batch_size=1, prefetch_batches=0):
                self._rows.put((int(row["number"][0]), row["outcome"][0]))
        except Exception as error:
            self._rows.put(error)


def _dataset(desk: Any, model: Model, size: int, needs: dict[str, float]) -> "Dataset":
    """What the desk gets, as rows with their answers."""
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    class Feed(Datasource):
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
            def read() -> "Iterator[pa.Table]":
                while (number := ray.get(desk.next.remote())) is not None:
                    yield pa.table({"number": [number]})

            return [ReadTask(read, BlockMetadata(None, None, None, None))]

    context = DataContext.get_current().copy()
    context.target_max_block_size = 1  # a row is sent on as soon as it is there
    context.enable_progress_bars = False
    with DataContext.current(context):
        rows = ray.data.read_datasource(Feed(), override_num_blocks=1, num_cpus=0)
        # A traceback for each file that kills is told of in one line. Ray adds the handlers of the program to its own.
        for handler in {*logging.getLogger("ray.data").handlers} - {*logging.root.handlers}:
            handler.setLevel(logging.CRITICAL)
        return rows.map_batches(
            Actor,
            batch_size=1,
            compute=ActorPoolStrategy(size=size),
            fn_constructor_kwargs={"model": model, "desk": desk},
            **needs,
        )
