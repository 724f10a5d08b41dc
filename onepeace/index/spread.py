"""Embedding by several processes, here or on other machines: a stand-in for `Embedder` that hands items out and gives
their results back in order. What the processes are, and how they are reached, is a `Crew`'s: workers.py, ray_engine.py.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from onepeace.embed.parts import Compound
from onepeace.errors import UserError

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder

CHUNK_BYTES = 64 << 20
"""Content of files that is handed out at once, of items that are not paths."""
ENGINES = ("local", "ray")
AHEAD = 4
"""Chunks for each process that may be on their way, or wait for an older one."""


@dataclass(frozen=True)
class Model:
    """What a process loads."""

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
    """Of `Embedder.stream`."""
    alone: bool = False
    """One item that may end the process it is given to: nothing else is to be lost with it."""


class Answer(NamedTuple):
    """What has become of an item, as it travels between processes: no tensors, no exceptions."""

    name: str
    vector: np.ndarray | None = None
    """(E,) float32; None if it failed."""
    windows: tuple[np.ndarray, list[float], list[float]] | None = None
    """(W, E) float32, starts and ends, of a sound that was cut."""
    reason: str | None = None
    learned: dict[str, Any] | None = None
    """Of a `Compound`: its attributes of that name, with their values."""


@dataclass(frozen=True)
class Done:
    """A chunk that was embedded."""

    first: int
    answers: list[Answer]
    seconds: dict[str, float] = field(default_factory=dict)
    """That the stages were busy since the last chunk of this process."""
    logged: "list[Record]" = field(default_factory=list)
    """What was logged since then."""


@dataclass(frozen=True)
class Lost:
    """A process has died."""

    chunks: list[Chunk]
    """What it had been given, and not answered."""
    reason: str


class Crew(Protocol):
    """Processes that embed chunks."""

    size: int
    """How many there are."""

    def has_room(self, alone: bool) -> bool:
        """Whether one of them takes another chunk now."""

    def give(self, chunk: Chunk) -> None:
        """Hand out a chunk, when there is room."""

    def take(self) -> Done | Lost:
        """Wait for what comes back next.

        Raises:
            UserError: no process can embed anything.
        """

    def close(self) -> None:
        """End them, whatever they do."""


class Spread:
    """A model that several processes have loaded. This one loads none.

    Args:
        name: of the model.
        start: gives the processes; called when there is something to embed.
    """

    def __init__(self, name: str, start: Callable[[], Crew]) -> None:
        from onepeace.hub.folder import read_config
        from onepeace.hub.resolve import resolve
        from onepeace.processors import PROCESSORS

        folder = resolve(name)
        config = read_config(folder)
        self.embed_dim: int = config.model.embed_dim
        self.processors = {
            key: PROCESSORS[key].from_config(config.processors.get(key, {}), folder) for key in config.model.adapters
        }
        self._start = start
        self._crew: Crew | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(self.processors)

    def close(self) -> None:
        """End the processes."""
        crew, self._crew = self._crew, None
        if crew is not None:
            crew.close()

    def stream(
        self,
        items: Iterable[object],
        *,
        long: str = "truncate",
        window: float | None = None,
        hop: float | None = None,
        batch_size: int = 32,
        timings: MutableMapping[str, float] | None = None,
    ) -> Generator["Embedded", None, None]:
        """As `Embedder.stream` says. An item that ends the process it is embedded by, also when it is there alone, is
        one that failed.

        Raises:
            UserError: the model cannot be loaded, or not used for a batch.
        """
        options = {"long": long, "window": window, "hop": hop, "batch_size": batch_size}
        # Several batches, so that items of like size come together; of sounds that are cut, each may be many samples.
        size = 2 * batch_size if long == "truncate" else batch_size
        crew = self._crew = self._crew or self._start()
        chunks = _chunks(items, options, size)
        again: deque[Chunk] = deque()
        done: dict[int, Embedded] = {}
        handed: dict[int, Chunk] = {}
        given = out = 0
        try:
            while True:
                while crew.has_room(alone=bool(again)) and (again or given - out < AHEAD * crew.size * size):
                    chunk = again.popleft() if again else next(chunks, None)
                    if chunk is None:
                        break
                    crew.give(chunk)
                    handed[chunk.first] = chunk
                    given = max(given, chunk.first + len(chunk.items))
                if not handed:
                    return
                outcome = crew.take()
                if isinstance(outcome, Done):
                    _account(outcome, timings)
                    _teach(handed.pop(outcome.first), outcome.answers)
                    results = [_embedded(outcome.first + i, answer) for i, answer in enumerate(outcome.answers)]
                else:
                    for chunk in outcome.chunks:
                        del handed[chunk.first]
                    again += [one for chunk in outcome.chunks if not chunk.alone for one in _one_by_one(chunk)]
                    results = [_failed(chunk, outcome.reason) for chunk in outcome.chunks if chunk.alone]
                done |= {result.index: result for result in results}
                while out in done:
                    yield done.pop(out)
                    out += 1
        finally:
            if handed:  # stopped on the way
                self.close()


def spread(model: Model, engine: str, workers: int | None) -> "Spread | None":
    """What embeds with several processes; None if this one is to do it.

    Args:
        engine: one of ENGINES: processes of this machine, or actors of a Ray cluster.
        workers: how many. None: this process itself, or with Ray one for each GPU of the cluster, and without GPUs one
            for each machine.

    Raises:
        UserError: an unknown engine or device, a package that is missing, no model of that name.
    """
    if engine not in ENGINES:
        raise UserError(f"engine is {engine!r}; it can be {', '.join(ENGINES)}")
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}; give at least 1")
    if engine == "ray":
        from onepeace.index.ray_engine import Actors

        return Spread(model.name, lambda: Actors(model, workers))
    if workers in (None, 1):
        return None
    from onepeace.device import choose_device
    from onepeace.index.workers import Processes

    choose_device(model.device)
    return Spread(model.name, lambda: Processes(model, workers))


def embed(
    embedder: "Embedder", chunk: Chunk, journal: "Journal", more: Callable[[dict[str, Any]], Chunk | None]
) -> Iterator[Done]:
    """What a process does with a chunk, and gives back.

    Args:
        more: gives a further chunk of these options, if one is there by now. They become one stream: what is decoded
            and what is computed overlap from one to the next.
    """
    waiting = deque([chunk])

    def items() -> Iterator[object]:
        following: Chunk | None = chunk
        while following is not None:
            yield from following.items
            if (following := more(chunk.options)) is not None:
                waiting.append(following)

    done: list[Answer] = []
    for result in embedder.stream(items(), **chunk.options, timings=journal.seconds):
        done.append(_answer(waiting[0].items[len(done)], result))
        if len(done) == len(waiting[0].items):
            yield Done(waiting.popleft().first, done, *journal.take())
            done = []


Record = tuple[str, int, str, tuple[int | float | str, ...]]
"""Logger, level, message and arguments of something that was logged."""


class Journal(logging.Handler):
    """What a process has to say beside its answers: it takes over what the package logs there."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        """As `Embedder.stream` counts them."""
        self._told: dict[str, float] = {}
        self._records: list[Record] = []
        logger = logging.getLogger("onepeace")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        given = record.args if isinstance(record.args, tuple) else ()
        arguments = tuple(one if isinstance(one, int | float) else str(one) for one in given)
        self._records.append((record.name, record.levelno, str(record.msg), arguments))

    def take(self) -> tuple[dict[str, float], list[Record]]:
        """The seconds and records since the last call; threads may go on adding to them."""
        seconds, records = dict(self.seconds), self._records[:]
        del self._records[: len(records)]
        news = {stage: value - self._told.get(stage, 0.0) for stage, value in seconds.items()}
        self._told = seconds
        return news, records


def _chunks(items: Iterable[object], options: dict[str, Any], size: int) -> Iterator[Chunk]:
    """All items, so many at once, or fewer that hold much."""
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


def _teach(chunk: Chunk, answers: Sequence[Answer]) -> None:
    """Let items know what their copies in another process have learned."""
    for item, answer in zip(chunk.items, answers, strict=True):
        for name, value in (answer.learned or {}).items():
            setattr(item, name, value)


def _account(done: Done, timings: MutableMapping[str, float] | None) -> None:
    for stage, seconds in done.seconds.items():
        if timings is not None:
            timings[stage] = timings.get(stage, 0.0) + seconds
    for name, level, message, arguments in done.logged:
        logging.getLogger(name).log(level, message, *arguments)


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
    return Embedded(index, answer.name, torch.from_numpy(answer.vector), windows)


def _failed(chunk: Chunk, reason: str) -> "Embedded":
    from onepeace.embed.assembly import Embedded
    from onepeace.embed.items import name_of

    error = UserError(f"the process that embeds it dies of it ({reason})")
    return Embedded(chunk.first, name_of(chunk.first, chunk.items[0]), error=error)
