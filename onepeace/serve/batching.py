"""One thread owns the model: what several clients ask for at the same moment is computed in one pass.

A vector depends on its own item alone (to 1e-5 in float32, see `Embedder`), so it does not matter who else asked.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onepeace.errors import UserError

if TYPE_CHECKING:
    from onepeace.embed.embedder import Embedder

WAIT = 0.004
"""Seconds that a request waits for others."""
SIZE = 32
"""Items from which on nobody is waited for, and items in one pass of the model."""


class Asked(NamedTuple):
    """An item that a client wants encoded."""

    name: str
    """Of its place in the request, for messages."""
    modality: str
    value: object
    """As `Embedder.encode` takes it."""


class _Request(NamedTuple):
    items: Sequence[Asked]
    vectors: "Future[np.ndarray]"


class Batching:
    """Encodes for any number of threads.

    Args:
        embedder: used by one thread only from here on.
        wait: seconds that a request waits for others; 0 takes those that are there.
        size: items from which on nobody is waited for.
    """

    def __init__(self, embedder: "Embedder", *, wait: float = WAIT, size: int = SIZE) -> None:
        self._embedder = embedder
        self._wait, self._size = wait, size
        self._requests: queue.Queue[_Request | None] = queue.Queue()
        self._lock, self._closed = threading.Lock(), False  # no request comes after the None that ends the thread
        self._thread = threading.Thread(target=self._run, name="onepeace-model", daemon=True)
        self._thread.start()

    def encode(self, items: Sequence[Asked]) -> np.ndarray:
        """(n, E) float32 unit vectors of one or more items, in their order.

        Raises:
            UserError: an item that cannot be read, by its name; no memory; the server is stopping.
        """
        request = _Request(items, Future())
        with self._lock:
            if self._closed:
                raise UserError("the server is stopping")
            self._requests.put(request)
        return request.vectors.result()

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        with self._lock:
            self._closed = True
            self._requests.put(None)
        self._thread.join()

    def _run(self) -> None:
        stopping = False
        while not stopping and (first := self._requests.get()) is not None:
            batch, count, deadline = [first], len(first.items), time.monotonic() + self._wait
            while count < self._size:
                try:
                    following = self._requests.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if following is None:
                    stopping = True
                    break
                batch.append(following)
                count += len(following.items)
            self._answer(batch)

    def _answer(self, batch: Sequence[_Request]) -> None:
        try:
            for request, answer in zip(batch, self._encode(batch), strict=True):
                if isinstance(answer, UserError):
                    request.vectors.set_exception(answer)
                else:
                    request.vectors.set_result(answer)
        except Exception as error:  # whatever it is, those who wait have to hear of it, and the thread goes on
            for request in batch:
                if not request.vectors.done():
                    request.vectors.set_exception(error)

    def _encode(self, batch: Sequence[_Request]) -> Iterator[np.ndarray | UserError]:
        """For each request its vectors, or what is wrong with one of its items."""
        items = [{item.modality: item.value} for request in batch for item in request.items]
        vectors, failures = self._embedder.encode(
            items, batch_size=self._size, on_error="skip", output="numpy", progress=False
        )
        reasons = {failure.index: failure.reason for failure in failures}
        rows = iter(np.asarray(vectors))
        place = 0
        for request in batch:
            own = range(place, place + len(request.items))
            place += len(request.items)
            found = [next(rows) for index in own if index not in reasons]
            failed = [f"{item.name}: {reasons[i]}" for i, item in zip(own, request.items, strict=True) if i in reasons]
            yield UserError(failed[0]) if failed else np.stack(found)
