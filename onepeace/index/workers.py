"""Embedding by several processes: a stand-in for `Embedder` that hands items out in chunks and gives their results back
in order. Here the processes are those of `ProcessPoolExecutor`; a plug-in (`engine`) has them elsewhere.

A chunk whose process dies is embedded again while nothing else is, and item by item if it dies once more: an item that
ends a process alone is one that failed.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from onepeace.embed.parts import Compound
from onepeace.errors import UserError, one_line
from onepeace.index.plugin import plugin

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder

CHUNK_BYTES = 64 << 20
"""Content of files that is handed out at once, of items that are not paths."""
AHEAD = 3
"""Chunks for each process that may be on their way, or wait for an older one."""


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


@dataclass
class Done:
    """A chunk that was embedded."""

    results: "list[Embedded]" = field(default_factory=list)
    learned: list[dict[str, Any]] = field(default_factory=list)
    """For each item, attributes of a `Compound` that its copy in the other process has set."""


class Engine(Protocol):
    """Processes that have loaded a model: what ``onepeace.plugins.NAME.open_engine(model, count)`` gives."""

    size: int
    """Number of processes."""

    def submit(self, chunk: Chunk) -> "Future[Done]":
        """Embed a chunk; a process that has died is replaced first.

        The future raises `BrokenExecutor` if the process dies, `UserError` if the chunk cannot be embedded.
        """

    def close(self) -> None:
        """End the processes, whatever they do."""


class Pool:
    """A model that several processes have loaded. This one loads none.

    Args:
        name: of the model.
        start: gives the processes; called when there is something to embed.
    """

    def __init__(self, name: str, start: Callable[[], Engine]) -> None:
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
    def _engine(self) -> Engine:
        return self._start()

    def close(self) -> None:
        if (engine := self.__dict__.pop("_engine", None)) is not None:
            engine.close()

    def encode_text(self, texts: Sequence[str], **options: Any) -> Any:
        """See `Embedder.encode_text`; computed here, as words are few."""
        from onepeace.embed.embedder import load

        return load(self._name, modalities=["text"]).encode_text(texts, **options)

    def stream(
        self, items: Iterable[object], *, batch_size: int = 32, **options: Any
    ) -> Generator["Embedded", None, None]:
        """See `Embedder.stream`. An item that ends the process it is embedded by failed.

        Raises:
            UserError: the model cannot be loaded, or not used for a batch.
        """
        chunks = _chunks(items, {**options, "batch_size": batch_size}, batch_size)
        waiting: deque[tuple[Chunk, Future[Done]]] = deque()
        try:
            while True:
                room = AHEAD * self._engine.size - len(waiting)
                waiting += ((chunk, self._engine.submit(chunk)) for chunk in islice(chunks, room))
                if not waiting:
                    return
                chunk, future = waiting.popleft()
                try:
                    done = future.result()
                except BrokenExecutor:
                    wait([others for _, others in waiting])
                    yield from self._again(chunk)
                else:
                    yield from _taken(chunk, done)
        except BaseException:  # also that nobody asks for the rest
            self.close()
            raise

    def _again(self, chunk: Chunk) -> Iterator["Embedded"]:
        """Results of a chunk that is embedded while nothing else is."""
        try:
            done = self._engine.submit(chunk).result()
        except BrokenExecutor:
            if len(chunk.items) == 1:
                yield _failed(chunk)
                return
            for i, item in enumerate(chunk.items, chunk.first):
                yield from self._again(replace(chunk, first=i, items=[item]))
        else:
            yield from _taken(chunk, done)


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
        open_engine = plugin(engine, "open_engine")
        return Pool(model.name, lambda: open_engine(model, count))
    if count in (None, 1):
        return None
    from onepeace.device import choose_device

    choose_device(model.device)
    return Pool(model.name, lambda: LocalEngine(model, count or 1))


class LocalEngine:
    """Processes of this machine; of several GPUs each takes the next.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, model: Model, count: int) -> None:
        from onepeace.device import devices_of

        self.size = count
        self._models = [replace(model, device=device) for device in devices_of(model.device, count)]
        self._start()
        try:
            self._executor.submit(_load).result()
        except BrokenExecutor as error:
            reason = f"a worker died while it loaded the model ({one_line(error)})"
            raise UserError(f"{reason}; if memory is short, take fewer --workers") from error
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        models = context.SimpleQueue()
        for model in self._models:
            models.put(model)
        self._executor = ProcessPoolExecutor(self.size, context, initializer=_begin, initargs=(models, self.size))

    def submit(self, chunk: Chunk) -> "Future[Done]":
        try:
            return self._executor.submit(_embed, chunk)
        except BrokenExecutor:
            self._start()
            return self._executor.submit(_embed, chunk)

    def close(self) -> None:
        for process in [*(self._executor._processes or {}).values()]:  # kill_workers, from Python 3.14 on
            process.kill()
        self._executor.shutdown(wait=False, cancel_futures=True)


_model: Model


def _begin(models: Any, count: int) -> None:
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
    _model = models.get()


def _load() -> None:
    """Load the model, where an error is told as what it is."""
    _loaded()


@cache
def _loaded() -> "Embedder":
    return _model.load()


def _embed(chunk: Chunk) -> Done:
    return embed(_loaded(), chunk)


def embed(embedder: "Embedder", chunk: Chunk) -> Done:
    """Results of a chunk, wherever it is embedded."""
    from onepeace.embed.assembly import Embedded

    done = Done()
    results = embedder.stream(chunk.items, **chunk.options)
    for place, (item, result) in enumerate(zip(chunk.items, results, strict=True), chunk.first):
        error = None if result.error is None else UserError(str(result.reason))  # others may not be picklable
        parts = result.vector, result.windows, error
        done.results.append(Embedded(place, result.name, *parts, is_silent=result.is_silent))
        names = item.learned if isinstance(item, Compound) else ()
        done.learned.append({name: getattr(item, name) for name in names})
    return done


def _chunks(items: Iterable[object], options: dict[str, Any], size: int) -> Iterator[Chunk]:
    """All items in chunks of ``size``, or fewer that hold much."""
    first, some, weight = 0, list[object](), 0
    for item in items:
        some.append(item)
        values = item.values() if isinstance(item, dict) else [getattr(item, "value", item)]
        weight += sum(len(value) for value in values if isinstance(value, bytes | str))
        if len(some) == size or weight > CHUNK_BYTES:
            yield Chunk(first, some, options)
            first, some, weight = first + len(some), [], 0
    if some:
        yield Chunk(first, some, options)


def _taken(chunk: Chunk, done: Done) -> Iterator["Embedded"]:
    """Results of a chunk; what its process learned of the items is taken over."""
    for item, learned, result in zip(chunk.items, done.learned, done.results, strict=True):
        for name, value in learned.items():
            setattr(item, name, value)
        yield result


def _failed(chunk: Chunk) -> "Embedded":
    from onepeace.embed.assembly import Embedded
    from onepeace.embed.items import name_of

    error = UserError("the process that embeds it dies of it")
    return Embedded(chunk.first, name_of(chunk.first, chunk.items[0]), error=error)
