"""Copying of shards to the cache in threads, before they are read: those at addresses and compressed ones."""

import os
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from onepeace.data.shard import open_shard
from onepeace.files.source import scheme

THREADS = 4
"""Number of shards that a process copies at the same time."""


class Prefetch:
    """Threads that open shards; they start in the process that first asks, as a fork has none of them.

    Args:
        cache_bytes: limit of the cache.
    """

    def __init__(self, cache_bytes: float) -> None:
        self.cache_bytes = cache_bytes
        self._process = 0
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._asked: set[str] = set()

    def ask(self, addresses: list[str]) -> None:
        """Open those shards that have to be copied, unless they were among the last asked for."""
        copied = {address for address in addresses if scheme(address) or address.endswith("gz")}
        new = copied - self._asked
        self._asked = copied
        if new and self._process != os.getpid():
            self._start()
        for address in addresses:
            if address in new:
                self._queue.put(address)

    def _start(self) -> None:
        self._process = os.getpid()
        self._queue = SimpleQueue()
        for _ in range(THREADS):
            thread = Thread(target=self._open_all, args=(self._queue,), daemon=True)
            thread.start()

    def _open_all(self, queue: "SimpleQueue[str]") -> None:
        while True:
            address = queue.get()
            with suppress(Exception):  # reported when the shard is drawn
                open_shard(address, self.cache_bytes)

    def __reduce__(self) -> Any:
        """A process that gets this by pickling starts threads of its own."""
        return Prefetch, (self.cache_bytes,)
