"""Embedding by several processes of this machine, one for each GPU, or with a share of the CPU's cores each."""

import multiprocessing
import os
import queue
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from onepeace.errors import UserError, one_line
from onepeace.index.spread import Chunk, Done, Journal, Lost, Model, embed

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

ROOM = 3
"""Chunks that a process has at once: one that it computes, one that it decodes meanwhile, one that is there then."""


@dataclass(frozen=True)
class _Failed:
    """A process cannot go on."""

    reason: str


_READY = "ready"


@dataclass
class _Worker:
    """A process, as the one that started it sees it."""

    number: int
    process: "BaseProcess"
    pipe: "Connection"
    chunks: dict[int, Chunk] = field(default_factory=dict)
    """What it has been given, by the place of the first item."""
    is_ready: bool = False
    """The model is loaded."""

    def has_room(self, alone: bool) -> bool:
        others = self.chunks.values()
        return not others if alone else len(others) < ROOM and not any(chunk.alone for chunk in others)


class Processes:
    """A `Crew` of processes here.

    They are spawned: a script that uses them has to guard what it does with ``if __name__ == "__main__":``.

    Args:
        model: with the device that all take, or None for the best there is; of several GPUs each takes the next.
        size: how many.
    """

    def __init__(self, model: Model, size: int) -> None:
        from onepeace.device import devices_of

        self.size = size
        self._models = [replace(model, device=device) for device in devices_of(model.device, size)]
        self._workers = [self._started(number) for number in range(size)]

    def has_room(self, alone: bool) -> bool:
        return any(worker.has_room(alone) for worker in self._workers)

    def give(self, chunk: Chunk) -> None:
        worker = min((one for one in self._workers if one.has_room(chunk.alone)), key=lambda one: len(one.chunks))
        worker.chunks[chunk.first] = chunk
        with suppress(OSError):  # it has died, which `take` finds
            worker.pipe.send(chunk)

    def take(self) -> Done | Lost:
        while True:
            ready = connection.wait([worker.pipe for worker in self._workers])
            worker = next(one for one in self._workers if one.pipe is ready[0])
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                return self._lost(worker)
            if isinstance(message, _Failed):
                raise UserError(message.reason)
            if isinstance(message, Done):
                del worker.chunks[message.first]
                return message
            worker.is_ready = True

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def _started(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        arguments = (there, self._models[number], self.size)
        process = context.Process(target=_work, args=arguments, name=f"onepeace-{number}", daemon=True)
        process.start()
        there.close()  # so that its end closes when the process dies
        return _Worker(number, process, here)

    def _lost(self, worker: _Worker) -> Lost:
        """Start another process in the place of one that has died."""
        worker.process.join()
        worker.pipe.close()
        code = worker.process.exitcode or 0
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not worker.is_ready:
            raise UserError(
                f"worker {worker.number + 1} of {self.size} died while it loaded the model ({reason}); if memory is "
                "short, take fewer --workers"
            )
        self._workers[worker.number] = self._started(worker.number)
        return Lost(list(worker.chunks.values()), reason)


def _work(pipe: "Connection", model: Model, size: int) -> None:
    """What a process does until the one that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: whoever started it ends it
    inbox = _Inbox(pipe)
    with suppress(BrokenPipeError):
        try:
            import torch

            torch.set_num_threads(max(1, torch.get_num_threads() // size))
            journal = Journal()
            embedder = model.load()
            pipe.send(_READY)
            while True:
                for done in embed(embedder, inbox.get(), journal, inbox.more):
                    pipe.send(done)
        except UserError as error:
            pipe.send(_Failed(str(error)))
        except Exception as error:
            pipe.send(_Failed(f"a worker failed: {type(error).__name__}: {one_line(error)}"))


class _Inbox:
    """Chunks that have come."""

    def __init__(self, pipe: "Connection") -> None:
        self._queue: queue.SimpleQueue[Chunk] = queue.SimpleQueue()
        self._next: Chunk | None = None
        # A thread, so that the other side never waits to get rid of a chunk while this one waits to get rid of answers.
        threading.Thread(target=self._receive, args=(pipe,), daemon=True).start()

    def get(self) -> Chunk:
        """The next; waits for it."""
        chunk, self._next = self._next or self._queue.get(), None
        return chunk

    def more(self, options: dict[str, Any]) -> Chunk | None:
        """The next, if it is there and has these options."""
        if self._next is None:
            with suppress(queue.Empty):
                self._next = self._queue.get_nowait()
        return self.get() if self._next is not None and self._next.options == options else None

    def _receive(self, pipe: "Connection") -> None:
        while True:
            try:
                self._queue.put(pipe.recv())
            except Exception:  # the other side is gone, or what it sends cannot be read: it notices that this one is
                os._exit(1)
