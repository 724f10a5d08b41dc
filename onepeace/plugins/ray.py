"""Embedding by actors of Ray, on this machine or on all of a cluster: ``onepeace index build --engine ray``.

`open_workers` is the hook of `onepeace.index.workers`, which hands out chunks, puts their results in order, and tries
the files of a chunk that killed its process one by one. Paths and the model's name have to mean the same on every
machine.
"""

import logging
import os
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from onepeace.errors import UserError, need, one_line
from onepeace.index.workers import Chunk, Done, Model, Worker, embed

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder


def open_workers(model: Model, count: int | None = None) -> list[Worker]:
    """Actors that have loaded the model.

    Args:
        model: with the device that all take. None is a GPU for each actor, where the cluster has any.
        count: number of actors; None: as many as there are GPUs, and without GPUs one for each machine.

    Raises:
        UserError: Ray is not installed or cannot be started, or the model cannot be loaded.
    """
    ray = need("ray", "ray")
    from onepeace.device import may_be_gpu

    is_ours = not ray.is_initialized()
    if is_ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:  # the cluster that runs here, or else processes of this machine
            ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.CRITICAL)
        except Exception as error:
            raise UserError(f"Ray cannot be started: {one_line(error)}") from error
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0)) if may_be_gpu(model.device) else 0
    count = count or gpus or sum(node["Alive"] for node in ray.nodes())
    share = there.get("CPU", 1) / count
    needs = {"num_gpus": 1 / -(-count // gpus)} if gpus else {"num_cpus": float(int(share)) if share >= 1 else share}
    workers: list[RayWorker] = []
    try:
        workers += (RayWorker(model, needs, workers, is_ours) for _ in range(count))
        for worker in workers:
            worker.wait()
    except BaseException:
        for worker in [*workers]:
            worker.close()
        raise
    return list(workers)


class RayWorker:
    """An actor that has the model.

    Args:
        needs: resources of the actor.
        open_ones: all that are not closed; the last one ends a Ray that was started here.
        is_ours: whether it was.
    """

    def __init__(self, model: Model, needs: dict[str, Any], open_ones: "list[RayWorker]", is_ours: bool) -> None:
        self._model, self._needs, self._open_ones, self._is_ours = model, needs, open_ones, is_ours
        self._begin()

    def _begin(self) -> None:
        import ray

        actors: Any = ray.remote(**self._needs)(_Actor)
        self._actor = actors.remote(self._model)
        self._loaded = _answer_of(self._actor.load.remote())

    def wait(self) -> None:
        """Wait until the model is loaded.

        Raises:
            UserError: it cannot be, or the actor died.
        """
        try:
            self._loaded.result()
        except BrokenExecutor as error:
            raise UserError(
                f"an actor died while it loaded the model ({error}); if memory is short, take fewer --workers"
            ) from error

    def submit(self, chunk: Chunk) -> "Future[Done]":
        return _answer_of(self._actor.embed.remote(chunk))

    def restart(self) -> None:
        self._kill()
        self._begin()
        self.wait()

    def close(self) -> None:
        import ray

        self._kill()
        self._open_ones.remove(self)
        if self._is_ours and not self._open_ones:
            ray.shutdown()

    def _kill(self) -> None:
        import ray

        with suppress(Exception):  # it is gone
            ray.kill(self._actor)


class _Actor:
    """Process of Ray that embeds."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def load(self) -> None:
        """Load the model: not when the actor is made, where an error would be told as its death."""
        self._embedder: Embedder = self._model.load()

    def embed(self, chunk: Chunk) -> Done:
        return embed(self._embedder, chunk)


def _answer_of(reference: Any) -> "Future[Any]":
    """Future of a call of an actor, with the errors of `Worker.submit`."""
    from ray.exceptions import RayActorError, RayTaskError, WorkerCrashedError

    answer: Future[Any] = Future()

    def settle(found: "Future[Any]") -> None:
        error = found.exception()
        if error is None:
            answer.set_result(found.result())
        elif isinstance(error, RayTaskError):
            cause = error.cause
            reason = f"an actor failed: {type(cause).__name__}: {one_line(cause)}"
            answer.set_exception(UserError(str(cause) if isinstance(cause, UserError) else reason))
        elif isinstance(error, (RayActorError, WorkerCrashedError)):
            answer.set_exception(BrokenExecutor(one_line(error)))
        else:
            answer.set_exception(UserError(f"Ray: {one_line(error)}"))

    reference.future().add_done_callback(settle)
    return answer
