"""Copying of shards to the cache in threads, before they are read: those at addresses and compressed ones."""

import os
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

from onepeace.data.shard import open_shard
from onepeace.files.source import scheme

THREADS = 4
"""Number of shards that a process copies at the same time."""


class Prefetch:
    """Threads that open shards; they start in the process that first asks, as a fork has none of them."""

    def __init__(self) -> None:
        self._process = 0
        self._queue: SimpleQueue[tuple[str, float]] = SimpleQueue()
        self._asked: set[str] = set()

    def ask(self, shards: list[tuple[str, float]]) -> None:
        """Open shards, each given by its address and the limit of the cache, unless they were the last asked for."""
        copied = {address: cache_bytes for address, cache_bytes in shards if scheme(address) or address.endswith("gz")}
        new = [shard for shard in copied.items() if shard[0] not in self._asked]
        self._asked = set(copied)
        if new and self._process != os.getpid():
            self._start()
        for shard in new:
            self._queue.put(shard)

    def _start(self) -> None:
        self._process = os.getpid()
        self._queue = SimpleQueue()
        for _ in range(THREADS):
            Thread(target=_open_all, args=(self._queue,), daemon=True).start()

    def __getstate__(self) -> dict[str, object]:
        return {}  # to be started anew

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()  # type: ignore[misc]


def _open_all(queue: "SimpleQueue[tuple[str, float]]") -> None:
    while True:
        address, cache_bytes = queue.get()
        with suppress(Exception):  # reported when the shard is drawn
            open_shard(address, cache_bytes)
