"""Embedding in Ray actors, on this machine or a cluster: ``onepeace index build --engine ray``.

`open_engine` is the hook of `onepeace.index.maintain`. Its `Embedder` has a `stream` that sends chunks of items to the
actors and yields the results in order. Ray restarts an actor that died and retries its chunk once; a chunk that kills
it again is embedded item by item, and an item that kills it on its own fails. Paths and the name of the model must mean
the same on every machine.
"""

import logging
import math
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from onepeace.errors import UsageError, UserError, need, one_line

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedded, Embedder

ADDRESS = re.compile(r"ray(?::(?P<count>[1-9]\d*))?")
AHEAD = 3
"""Chunks per actor that may be in flight or wait for an older one."""


class Died(UserError):
    """An actor died, and again after Ray restarted it."""


def open_engine(address: str, model: str, device: str | None, dtype: str) -> "RayEmbedder":
    """Start actors that have loaded the model.

    Args:
        address: "ray:4" for four actors; "ray" for one per GPU or, without GPUs, one per machine.
        device: None uses a GPU per actor if the cluster has any.

    Raises:
        UserError: Ray is not installed or cannot be started, or the model cannot be loaded.
    """
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError("give ray, or ray:4 for four processes", where=address)
    ray = need("ray", "ray")
    from onepeace.embed import embedder

    _start(ray)
    count, resources = _share(ray, device, int(match["count"] or 0))
    actor = ray.remote(max_restarts=-1, max_task_retries=1, **resources)(_Actor)
    load = partial(embedder.load, model, device=device, dtype=dtype)
    return RayEmbedder(model, [actor.remote(load) for _ in range(count)])


def _start(ray: Any) -> None:
    """Connect to the cluster that runs here, or else start processes on this machine; UserError if neither works."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.CRITICAL)
    except Exception as error:
        raise UserError(f"Ray cannot be started: {one_line(error)}") from error


def _share(ray: Any, device: str | None, count: int) -> tuple[int, dict[str, float]]:
    """Number of actors, and the resources of each.

    Args:
        count: 0 = one per GPU or, without GPUs, one per machine.
    """
    from onepeace.device import may_be_gpu

    cluster = ray.cluster_resources()
    num_gpus = int(cluster.get("GPU", 0)) if may_be_gpu(device) else 0
    if count == 0:
        count = num_gpus or sum(node["Alive"] for node in ray.nodes())
    if num_gpus:
        actors_per_gpu = math.ceil(count / num_gpus)
        return count, {"num_gpus": 1 / actors_per_gpu}
    cpus = cluster.get("CPU", 1) / count
    if cpus >= 1:
        cpus = float(int(cpus))
    return count, {"num_cpus": cpus}


class RayEmbedder:
    """`Embedder` without a model in this process; `close` ends its actors, but not Ray."""

    def __init__(self, model: str, actors: Sequence[Any]) -> None:
        self._model = model
        self._actors = actors
        try:
            self.processors = _answer([actor.load.remote() for actor in actors])[0]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)

    def encode_text(self, texts: Sequence[str], **options: Any) -> Any:
        """See `Embedder.encode_text`; computed in this process, as texts are few."""
        from onepeace.embed.embedder import load

        return load(self._model, modalities=["text"]).encode_text(texts, **options)

    def stream(
        self, items: Iterable[object], *, batch_size: int = 32, **options: Any
    ) -> Generator["Embedded", None, None]:
        """See `Embedder.stream`; a chunk has ``batch_size`` items, and `Embedded.index` counts within its chunk."""
        from onepeace.embed.encode import Embedded
        from onepeace.embed.items import name_of

        chunks = _chunks(items, batch_size)
        actors = cycle(self._actors)
        options["batch_size"] = batch_size
        waiting: deque[tuple[list[object], Any]] = deque()
        while True:
            for chunk in islice(chunks, AHEAD * len(self._actors) - len(waiting)):
                waiting.append((chunk, next(actors).embed.remote(chunk, options)))
            if not waiting:
                return
            chunk, reference = waiting.popleft()
            try:
                yield from _results(chunk, reference)
            except Died:
                for item in chunk:
                    try:
                        yield from _results([item], next(actors).embed.remote([item], options))
                    except Died:
                        yield Embedded(0, name_of(0, item), error=UserError("the process that embeds it crashes"))


def _chunks(items: Iterable[object], size: int) -> Iterator[list[object]]:
    iterator = iter(items)
    chunk = list(islice(iterator, size))
    while chunk:
        yield chunk
        chunk = list(islice(iterator, size))


class _Actor:
    """Ray actor that embeds."""

    def __init__(self, load: "Callable[[], Embedder]") -> None:
        self._load = cache(load)  # not called here, where an error would count as the actor's death

    def load(self) -> dict[str, Any]:
        """Load the model; return its audio processor, which has the length of the longest window."""
        return {key: processor for key, processor in self._load().processors.items() if key == "audio"}

    def embed(self, items: list[object], options: dict[str, Any]) -> "list[tuple[Embedded, dict[str, Any]]]":
        """Result of each item, and the attributes named by `CompositeItem.copied`, as they are in this process."""
        answers = []
        for item, result in zip(items, self._load().stream(items, **options), strict=True):
            if result.error is not None:
                result = replace(result, error=UserError(str(result.reason)))  # other errors may not be picklable
            copied = {name: getattr(item, name) for name in getattr(item, "copied", ())}
            answers.append((result, copied))
        return answers


def _results(items: list[object], reference: Any) -> Iterator["Embedded"]:
    """Results of a chunk; the items get the attributes from the actor."""
    for item, (result, copied) in zip(items, _answer(reference), strict=True):
        for name, value in copied.items():
            setattr(item, name, value)
        yield result


def _answer(reference: Any) -> Any:
    """Answer of an actor; its error becomes a one-line UserError."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return ray.get(reference)
    except RayActorError as error:
        raise Died(f"an actor died ({one_line(error)}); if memory is short, use fewer: --engine ray:1") from error
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        raise UserError(f"an actor failed: {type(cause).__name__}: {one_line(cause)}") from error
