"""Embedding by actors of Ray, on this machine or on all of a cluster: ``onepeace index build --engine ray``.

`open_engine` is the hook of `onepeace.index.workers`, which hands out chunks, puts their results in order, and tries
again what a dead process had. Paths and the model's name have to mean the same on every machine.
"""

import logging
import os
from concurrent.futures import BrokenExecutor, Future
from contextlib import suppress
from functools import cache
from typing import Any

from onepeace.errors import UserError, need, one_line
from onepeace.index.workers import Chunk, Done, Model, embed


def open_engine(model: Model, count: int | None = None) -> "RayEngine":
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
    return RayEngine(ray.remote(**needs)(_Actor), model, count, is_ours)


class RayEngine:
    """Actors of a ``kind``, with their resources. If Ray ``is_ours``, started for them, it ends with them."""

    def __init__(self, kind: Any, model: Model, count: int, is_ours: bool) -> None:
        self.size, self._kind, self._model, self._is_ours = count, kind, model, is_ours
        self._dead: set[int] = set()
        self._running = [0] * count
        self._actors = [kind.remote(model) for _ in range(count)]
        try:
            for place, actor in enumerate(self._actors):
                self._answer(place, actor.load.remote()).result()
        except BaseException as error:
            self.close()
            if not isinstance(error, BrokenExecutor):
                raise
            reason = f"an actor died while it loaded the model ({error})"
            raise UserError(f"{reason}; if memory is short, take fewer --workers") from error

    def submit(self, chunk: Chunk) -> "Future[Done]":
        while self._dead:
            self._actors[self._dead.pop()] = self._kind.remote(self._model)
        place = min(range(self.size), key=self._running.__getitem__)
        return self._answer(place, self._actors[place].embed.remote(chunk))

    def close(self) -> None:
        import ray

        for actor in self._actors:
            with suppress(Exception):  # it is gone
                ray.kill(actor)
        if self._is_ours:
            ray.shutdown()

    def _answer(self, place: int, reference: Any) -> "Future[Any]":
        """Future of a call of an actor, with the errors of `Engine.submit`."""
        from ray.exceptions import RayTaskError

        answer: Future[Any] = Future()
        self._running[place] += 1

        def settle(found: "Future[Any]") -> None:
            self._running[place] -= 1
            error = found.exception()
            if error is None:
                answer.set_result(found.result())
            elif isinstance(error, RayTaskError):
                cause = error.cause
                reason = f"an actor failed: {type(cause).__name__}: {one_line(cause)}"
                answer.set_exception(UserError(str(cause) if isinstance(cause, UserError) else reason))
            else:  # of the actor or its machine
                self._dead.add(place)
                answer.set_exception(BrokenExecutor(one_line(error)))

        reference.future().add_done_callback(settle)
        return answer


class _Actor:
    """Process of Ray that embeds."""

    def __init__(self, model: Model) -> None:
        self._load = cache(model.load)  # later: an error here would be told as the actor's death

    def load(self) -> None:
        """Load the model."""
        self._load()

    def embed(self, chunk: Chunk) -> Done:
        return embed(self._load(), chunk)
