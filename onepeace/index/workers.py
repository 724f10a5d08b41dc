"""Embedding by several processes: a stand-in for `Embedder` that hands items out in chunks and gives their results back
in order. Here the processes are those of `ProcessPoolExecutor`; a plug-in (`engine`) has them elsewhere.

A chunk that ends the process it is given to is tried again item by item, each alone: one that ends a process once more
is an item that failed.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from onepeace.embed.parts import Compound
from onepeace.errors import UserError, one_line
from onepeace.index.plugin import plugin

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder

CHUNK_BYTES = 64 << 20
"""Content of files that is handed out at once, of items that are not paths."""
AHEAD = 4
"""Chunks for each process that may be on their way, or wait for an older one."""
ROOM = 2
"""Chunks that a process has at once: one that it computes, one that is there then."""


@dataclass(frozen=True)
class Model:
    """Model as a process loads it."""

    name: str
    device: str | None = None
    dtype: str = "auto"

    def load(self) -> "Embedder":
        from onepeace.embed.embedder import load

        return load(self.name, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class Chunk:
    """Items that one process embeds together."""

    first: int
    """Place of the first among all items."""
    items: Sequence[object]
    options: dict[str, Any]
    """Options of `Embedder.stream`."""
    alone: bool = False
    """Whether its one item may end the process: nothing else is to be lost with it."""


class Answer(NamedTuple):
    """Result of an item, as it travels between processes: no tensors, no exceptions."""

    name: str
    vector: np.ndarray | None = None
    windows: tuple[np.ndarray, list[float], list[float]] | None = None
    """(W, E) float32, starts and ends, of a sound that was cut."""
    reason: str | None = None
    learned: dict[str, Any] | None = None
    """Attributes of a `Compound` that its copy in another process has set."""


@dataclass
class Done:
    """A chunk that was embedded."""

    answers: list[Answer]
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds each stage was busy."""
    logged: list[tuple[str, int, str]] = field(default_factory=list)
    """Logger, level and message of what was logged."""


class Worker(Protocol):
    """A process that has the model. `onepeace.plugins.NAME.open_workers(model, count)` gives a list of them."""

    def submit(self, chunk: Chunk) -> "Future[Done]":
        """Embed a chunk; the future raises `BrokenExecutor` if the process died, `UserError` if it cannot embed."""

    def restart(self) -> None:
        """Start another process in the place of one that has died."""

    def close(self) -> None:
        """End the process, whatever it does."""


class Pool:
    """A model that several processes have loaded. This one loads none.

    Args:
        name: of the model.
        start: gives the processes; called when there is something to embed.
    """

    def __init__(self, name: str, start: Callable[[], list[Worker]]) -> None:
        from onepeace.hub.folder import read_config
        from onepeace.hub.resolve import resolve
        from onepeace.processors import PROCESSORS

        folder = resolve(name)
        config = read_config(folder)
        self.embed_dim: int = config.model.embed_dim
        self.processors = {
            key: PROCESSORS[key].from_config(config.processors.get(key, {}), folder) for key in config.model.adapters
        }
        self._name, self._start = name, start

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.processors)

    @cached_property
    def _workers(self) -> list[Worker]:
        return self._start()

    def close(self) -> None:
        """End the processes."""
        for worker in self.__dict__.pop("_workers", []):
            worker.close()

    def encode_text(self, texts: Sequence[str], **options: Any) -> Any:
        """See `Embedder.encode_text`; computed here, as words are few."""
        from onepeace.embed.embedder import load

        return load(self._name, modalities=["text"]).encode_text(texts, **options)

    def stream(
        self,
        items: Iterable[object],
        *,
        batch_size: int = 32,
        timings: MutableMapping[str, float] | None = None,
        **options: Any,
    ) -> Generator["Embedded", None, None]:
        """See `Embedder.stream`. An item that ends the process it is embedded by, also when it is there alone, failed.

        Raises:
            UserError: the model cannot be loaded, or not used for a batch.
        """
        size = 4 * batch_size if "window" not in options else batch_size  # each long sound is many samples
        chunks = _chunks(items, {**options, "batch_size": batch_size}, size)
        again: deque[Chunk] = deque()
        running: dict[Future[Done], tuple[Worker, Chunk]] = {}
        results: dict[int, Embedded] = {}
        given = out = 0
        try:
            while True:
                while worker := self._free(running, alone=bool(again)):
                    if not again and given - out >= AHEAD * len(self._workers) * size:
                        break
                    chunk = again.popleft() if again else next(chunks, None)
                    if chunk is None:
                        break
                    running[worker.submit(chunk)] = (worker, chunk)
                    given = max(given, chunk.first + len(chunk.items))
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    if future not in running:  # of a process that has died meanwhile
                        continue
                    worker, chunk = running.pop(future)
                    try:
                        done = future.result()
                    except BrokenExecutor:
                        lost = [
                            chunk,
                            *(running.pop(one)[1] for one, (its, _) in list(running.items()) if its is worker),
                        ]
                        worker.restart()
                        again += [one for each in lost if not each.alone for one in _one_by_one(each)]
                        results |= {each.first: _failed(each) for each in lost if each.alone}
                    else:
                        _account(done, chunk, timings)
                        results |= {chunk.first + i: _embedded(chunk.first + i, a) for i, a in enumerate(done.answers)}
                while out in results:
                    yield results.pop(out)
                    out += 1
        finally:
            if running:  # stopped on the way
                self.close()

    def _free(self, running: "dict[Future[Done], tuple[Worker, Chunk]]", alone: bool) -> Worker | None:
        """Process that takes another chunk now."""
        for worker in self._workers:
            own = [chunk for its, chunk in running.values() if its is worker]
            if not own or (not alone and len(own) < ROOM and not any(chunk.alone for chunk in own)):
                return worker
        return None


def pool_of(model: Model, engine: str | None, count: int | None) -> Pool | None:
    """Processes that embed; None if this one is to do it.

    Args:
        engine: a module of onepeace.plugins that has the processes elsewhere; None = here.
        count: number of processes. None: this process itself, or as many as the engine finds right.

    Raises:
        UserError: an unknown engine or device, a package that is missing, no model of that name.
    """
    if count is not None and count < 1:
        raise UserError(f"workers is {count}; give at least 1")
    if engine is not None:
        open_workers = plugin(engine, "open_workers")
        return Pool(model.name, lambda: open_workers(model, count))
    if count in (None, 1):
        return None
    from onepeace.device import choose_device

    choose_device(model.device)
    return Pool(model.name, lambda: _local_workers(model, count or 1))


def _local_workers(model: Model, count: int) -> list[Worker]:
    """Processes here; of several GPUs each takes the next."""
    from onepeace.device import devices_of

    workers = [LocalWorker(replace(model, device=device), count) for device in devices_of(model.device, count)]
    for worker in workers:
        worker.wait()
    return list(workers)


class LocalWorker:
    """Process of this machine that has the model.

    Args:
        count: processes that share the cores.
    """

    def __init__(self, model: Model, count: int) -> None:
        self._model, self._count = model, count
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")
        arguments = (self._model, self._count)
        self._executor = ProcessPoolExecutor(1, context, initializer=_begin_worker, initargs=arguments)
        self._process = self._executor.submit(_load)

    def wait(self) -> None:
        """Wait until the model is loaded.

        Raises:
            UserError: it cannot be, or the process died.
        """
        try:
            self._process.result()
        except BrokenExecutor as error:
            raise UserError(
                f"a worker died while it loaded the model ({one_line(error)}); if memory is short, take fewer --workers"
            ) from error

    def submit(self, chunk: Chunk) -> "Future[Done]":
        return self._executor.submit(_embed, chunk)

    def restart(self) -> None:
        self.close()
        self._begin()
        self.wait()

    def close(self) -> None:
        with suppress(Exception):  # it is gone, or has not begun
            os.kill(self._process.result(timeout=0), signal.SIGKILL)
        self._executor.shutdown(wait=False, cancel_futures=True)


_model: Model
_embedder: "Embedder"


def _begin_worker(model: Model, count: int) -> None:
    """First step of a process: it leaves Ctrl-C to the one that started it, and ends with that."""
    global _model
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    _model = model


def _load() -> int:
    """Load the model; gives the number of the process."""
    global _embedder
    _embedder = _model.load()
    return os.getpid()


def _embed(chunk: Chunk) -> Done:
    return embed(_embedder, chunk)


def embed(embedder: "Embedder", chunk: Chunk) -> Done:
    """Results of a chunk, wherever it is embedded."""
    done = Done([])
    with _logged(done.logged):
        results = embedder.stream(chunk.items, **chunk.options, timings=done.seconds)
        for item, result in zip(chunk.items, results, strict=True):
            done.answers.append(_answer(item, result))
    return done


@contextmanager
def _logged(records: list[tuple[str, int, str]]) -> Iterator[None]:
    """Keep what the package logs in place of printing it in another process."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append((record.name, record.levelno, record.getMessage()))

    logger, handler = logging.getLogger("onepeace"), Keep()
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _chunks(items: Iterable[object], options: dict[str, Any], size: int) -> Iterator[Chunk]:
    """All items in chunks of ``size``, or fewer that hold much."""
    first, each = 0, iter(items)
    for item in each:
        some, weight = [], 0
        for one in chain([item], islice(each, size - 1)):
            some.append(one)
            weight += _weight(one)
            if weight > CHUNK_BYTES:
                break
        yield Chunk(first, some, options)
        first += len(some)


def _weight(item: object) -> int:
    values = item.values() if isinstance(item, dict) else [getattr(item, "value", item)]
    return sum(len(value) for value in values if isinstance(value, bytes | str))


def _one_by_one(chunk: Chunk) -> Iterator[Chunk]:
    for i, item in enumerate(chunk.items):
        yield replace(chunk, first=chunk.first + i, items=[item], alone=True)


def _account(done: Done, chunk: Chunk, timings: MutableMapping[str, float] | None) -> None:
    """Take over what a process says beside its vectors."""
    for item, answer in zip(chunk.items, done.answers, strict=True):
        for name, value in (answer.learned or {}).items():
            setattr(item, name, value)
    for stage, seconds in done.seconds.items():
        if timings is not None:
            timings[stage] = timings.get(stage, 0.0) + seconds
    for name, level, message in done.logged:
        logging.getLogger(name).log(level, "%s", message)


def _answer(item: object, result: "Embedded") -> Answer:
    learned = {name: getattr(item, name) for name in item.learned} if isinstance(item, Compound) else None
    if result.vector is None:
        return Answer(result.name, reason=str(result.reason), learned=learned)
    cut = result.windows
    windows = None if cut is None else (np.asarray(cut.vectors), cut.starts, cut.ends)
    return Answer(result.name, result.vector.numpy(), windows, learned=learned)


def _embedded(index: int, answer: Answer) -> "Embedded":
    import torch

    from onepeace.embed.assembly import Embedded, Windows

    if answer.vector is None:
        return Embedded(index, answer.name, error=UserError(answer.reason))
    windows = None if answer.windows is None else Windows(*answer.windows)
    return Embedded(index, answer.name, torch.tensor(answer.vector), windows)


def _failed(chunk: Chunk) -> "Embedded":
    from onepeace.embed.assembly import Embedded
    from onepeace.embed.items import name_of

    error = UserError("the process that embeds it dies of it")
    return Embedded(chunk.first, name_of(chunk.first, chunk.items[0]), error=error)
