"""The queue of a model: what the requests ask for waits by modality, and what waits together is computed together.

A request decodes its items in a thread of its own and adds them to a `Job`. Threads for each modality take what waits,
of similar size, up to the limits of a batch: nothing waits for company when the model is idle, and a text never waits
for pictures, as other threads compute these at the same time. A vector does not depend on its batch.
"""

import bisect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from onepeace.embed.encode import Embedded, Encoding, Item, Sample
from onepeace.embed.items import name_of
from onepeace.errors import UserError, expect
from onepeace.serve.requests import Refused
from onepeace.threads import MIN_BATCH, compute_alone

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

BATCH = 64
"""Maximum number of texts, pictures or sounds that are computed at once."""
BATCH_VALUES = 1 << 23
"""Maximum number of decoded values that are computed at once, such as 55 pictures of 224 by 224 points."""
AHEAD_BYTES = 1 << 27
"""Bytes of decoded values of a modality that wait before decoding waits too; it bounds memory."""
NEAR = 2 * BATCH
"""Number of samples among which those of a batch are chosen by their size."""
IN_TURN = 8
"""Samples of a request that have the same turn: a request of thousands of texts is overtaken by one of a few."""

Observe = Callable[[str, int], None]
"""Function that is told the modality and the size of each batch."""


class Busy(Refused):
    """Error of a request for which there is no place in the queue."""

    def __init__(self, count: int, waiting: int, limit: int) -> None:
        super().__init__(503, f"{waiting} items wait for the model and {count} more are above {limit}; try again later")


class ModelQueue:
    """Computes the vectors that any number of threads ask for, together.

    Args:
        embedder: the model.
        limit: number of items that may be in the queue, or on their way to it; a request that comes when there are none
            is taken whatever its size.
        observe: see `Observe`.
    """

    def __init__(self, embedder: "Embedder", limit: int, observe: Observe = lambda modality, count: None) -> None:
        self.embedder = embedder
        self.limit = limit
        self.jobs: set[Job] = set()
        """The open jobs."""
        self._num_items = 0
        self.encoding = Encoding(embedder, None)
        self._opening = threading.Lock()
        self._delivering = threading.Lock()
        self.lanes = {
            modality: Lane(self.encoding, modality, self._deliver, observe)
            for modality in embedder.modalities_with_vectors
        }

    def open(self, count: int) -> "Job":
        """A job of `count` items; `Busy` if there is no place for them."""
        job = Job(self, count)
        with self._opening:
            if self.jobs and self._num_items + count > self.limit:
                raise Busy(count, self._num_items, self.limit)
            self.jobs.add(job)
            self._num_items += count
        return job

    def results(self, items: Iterable[Mapping[str, object]], count: int) -> list[Embedded]:
        """The results of `count` items, {modality: value} each; waits for them.

        Raises:
            UserError: an item cannot be decoded or computed; Busy.
        """
        with self.open(count) as job:
            for index, item in enumerate(items):
                job.add(index, item)
            try:
                results = job.future.result()
            except CancelledError:
                raise Refused(503, "the server is being stopped") from None
        for result in results:
            if result.error is not None:
                raise UserError(str(result.reason), where=result.name) from result.error
        return results

    def encode(self, items: Sequence[Mapping[str, object]]) -> np.ndarray:
        """(n, E) float32 unit vectors of items, see `results`."""
        return torch.stack([expect(result.vector, torch.Tensor) for result in self.results(items, len(items))]).numpy()

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """(n, E) float32 unit vectors of texts."""
        return self.encode([{"text": text} for text in texts])

    def waiting(self) -> dict[str, int]:
        """Numbers of samples that wait, by modality."""
        return {modality: len(lane.waiting) for modality, lane in self.lanes.items()}

    def close(self) -> None:
        """End the threads when they have computed what waits."""
        for lane in self.lanes.values():
            lane.close()

    def put(self, job: "Job", samples: Sequence[Sample], *, waits: bool) -> None:
        for sample in samples:
            self.lanes[sample.modality].put(job, sample, waits=waits)

    def drop(self, job: "Job") -> None:
        """Forget what waits of a job."""
        for lane in self.lanes.values():
            lane.drop(job)

    def end(self, job: "Job") -> None:
        """Give the places of a job to others."""
        with self._opening:
            self.jobs.remove(job)
            self._num_items -= job.num_items

    def cancel(self) -> None:
        """Cancel all jobs."""
        for job in list(self.jobs):
            job.cancel()

    def _deliver(self, batch: "Sequence[Waiting]", vectors: Sequence[torch.Tensor] | Exception) -> None:
        """Give the vectors of a batch to its jobs, or the reason why there are none."""
        samples = [waiting.sample for waiting in batch]
        with self._delivering:  # an item may have samples of two modalities
            if isinstance(vectors, Exception):
                for sample in samples:
                    sample.item.error = vectors
            else:
                self.encoding.scatter(samples, vectors)
            done = [waiting for waiting in batch if _is_done(waiting.sample.item)]
        for waiting in done:
            waiting.job.finish(waiting.sample.item)


def _is_done(item: Item) -> bool:
    return item.error is not None or not item.num_missing


class Job:
    """The items of a request in the queue. As a context, it drops what nobody waits for any longer at its end.

    Attributes:
        future: the results in the order of the items, when all are there.
    """

    def __init__(self, queue: ModelQueue, num_items: int) -> None:
        self.queue = queue
        self.num_items = num_items
        self.num_tokens = 0
        """Number of tokens of the texts."""
        self.turn = 0.0
        """Turn of the sample that was added last."""
        self.future: Future[list[Embedded]] = Future()
        self._results: dict[int, Embedded] = {}

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cancel()
        self.queue.end(self)

    def cancel(self) -> None:
        """Drop what is not being computed yet, and cancel `future`, unless it is done."""
        if self.future.cancel():
            self.queue.drop(self)

    def add(self, index: int, value: Mapping[str, object], name: str = "", *, waits: bool = True) -> None:
        """Decode an item, and let it wait.

        Args:
            value: {modality: value}.
            name: its name in messages; "" = by its value.
            waits: whether to wait while very much is decoded already.

        Raises:
            UserError: it cannot be decoded.
        """
        if self.future.cancelled():
            return
        item = Item(index, name or name_of(index, value))
        samples = list(item.samples(self.queue.encoding.read(value)))
        if item.error is not None:
            raise item.error
        for sample in samples:
            if sample.modality == "text":
                self.num_tokens += len(sample.tensor)
        self.queue.put(self, samples, waits=waits)

    def fail(self, index: int, name: str, error: Exception) -> None:
        """Count an item that could not be decoded as done."""
        self.finish(Item(index, name, error))

    def finish(self, item: Item) -> None:
        self._results.setdefault(item.index, item.result())
        if len(self._results) == self.num_items and self.future.set_running_or_notify_cancel():
            self.future.set_result([self._results[index] for index in range(self.num_items)])


class Waiting(NamedTuple):
    """A sample that waits."""

    turn: float
    sample: Sample
    job: Job


class Lane:
    """The samples of one modality that wait, and the threads that compute them."""

    def __init__(
        self,
        encoding: Encoding,
        modality: str,
        deliver: Callable[[Sequence[Waiting], Sequence[torch.Tensor] | Exception], None],
        observe: Observe,
    ) -> None:
        self.modality = modality
        self.waiting: list[Waiting] = []
        """In the order of their turns."""
        self._encoding = encoding
        self._size_of = encoding.embedder.processors[modality].size
        self._deliver = deliver
        self._observe = observe
        self._changed = threading.Condition()
        self._bytes = 0
        self._clock = 0
        """Number of batches that have been taken."""
        # A large model divides every operator among the cores, where a small one computes a batch on each.
        self._splits = encoding.embedder.is_large
        self._num_threads = 1 if self._splits else encoding.embedder.workers
        self._running = 0
        self._is_closed = False

    def put(self, job: Job, sample: Sample, *, waits: bool) -> None:
        with self._changed:
            while waits and self._bytes > AHEAD_BYTES and not job.future.cancelled():
                self._changed.wait()
            if job.future.cancelled():
                return
            job.turn = max(self._clock, job.turn + 1 / IN_TURN)
            bisect.insort(self.waiting, Waiting(job.turn, sample, job), key=lambda waiting: waiting.turn)
            self._bytes += sample.tensor.nbytes
            self._start_threads()
            self._changed.notify()

    def drop(self, job: Job) -> None:
        with self._changed:
            dropped = [waiting for waiting in self.waiting if waiting.job is job]
            self.waiting = [waiting for waiting in self.waiting if waiting.job is not job]
            self._bytes -= _bytes_of(dropped)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _start_threads(self) -> None:
        while self._running < self._num_threads:
            self._running += 1
            name = f"onepeace-{self.modality}-{self._running}"
            threading.Thread(target=self._work, name=name, daemon=True).start()

    def _work(self) -> None:
        if not self._splits:
            compute_alone()
        while batch := self._next():
            self._observe(self.modality, len(batch))
            self._compute(batch)

    def _next(self) -> list[Waiting]:
        """The next batch, as soon as something waits; [] at the end of the thread."""
        with self._changed:
            while not self.waiting:
                if self._is_closed:
                    self._running -= 1
                    return []
                self._changed.wait()
            batch = self._take()
            self._clock += 1
            self._changed.notify_all()
            return batch

    def _take(self) -> list[Waiting]:
        """Remove the sample whose turn it is, and those behind it that are of a similar size."""
        share = max(MIN_BATCH, -(-len(self.waiting) // self._num_threads))
        first_size = self._size_of(self.waiting[0].sample.tensor)
        near = sorted(self.waiting[:NEAR], key=lambda other: abs(self._size_of(other.sample.tensor) - first_size))
        batch: list[Waiting] = []
        largest = 0
        for waiting in near[: min(BATCH, share)]:
            largest = max(largest, waiting.sample.tensor.numel())
            if batch and largest * (len(batch) + 1) > BATCH_VALUES:
                break
            batch.append(waiting)
        taken = set(map(id, batch))
        self.waiting[:NEAR] = [waiting for waiting in self.waiting[:NEAR] if id(waiting) not in taken]
        self._bytes -= _bytes_of(batch)
        return batch

    def _compute(self, batch: list[Waiting]) -> None:
        """Compute a batch; if it fails its halves, so that one item that cannot be computed fails alone."""
        try:
            vectors = list(self._encoding.compute([waiting.sample for waiting in batch]))
        except Exception as error:
            if len(batch) > 1:
                self._compute(batch[::2])
                self._compute(batch[1::2])
                return
            self._deliver(batch, error)
        else:
            self._deliver(batch, vectors)


def _bytes_of(batch: Sequence[Waiting]) -> int:
    return sum(waiting.sample.tensor.nbytes for waiting in batch)
