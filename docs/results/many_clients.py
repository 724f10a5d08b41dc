"""Clients of a server, many at once: python docs/results/many_clients.py INDEX.

Prints the rows of the last table of many_files.md.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from many_files import ONEPEACE, words

CLIENTS = (1, 8, 64)
SECONDS = 2


def serve(index: Path) -> None:
    """Print a row for each kind of request and number of clients."""
    requests: dict[str, Callable[[int], dict[str, Any]]] = {
        "/search": lambda number: {"text": words(number)},
        "/v1/embeddings": lambda number: {"input": [words(number)]},
    }
    with serving(index) as address:
        for path, body in requests.items():
            for clients in CLIENTS:
                times, seconds = answers(address, path, body, clients)
                late = 1000 * np.percentile(times, 99)
                middle = 1000 * np.median(times)
                print(f"| `{path}` | {clients} | {len(times) / seconds:.0f} | {middle:.0f} | {late:.0f} |", flush=True)


@contextmanager
def serving(index: Path) -> Iterator[str]:
    """Host and port of a server of an index."""
    command = [*ONEPEACE, "serve", str(index), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 (our own)
    try:
        line = server.stdout.readline()  # type: ignore[union-attr]
        yield line.split()[2].rstrip(";").removeprefix("http://").rstrip("/")
    finally:
        server.terminate()
        server.wait()


def answers(
    address: str, path: str, body: Callable[[int], dict[str, Any]], num_clients: int
) -> tuple[list[float], float]:
    """Ask for some seconds, each client one question after another; the seconds of each answer, and of all together."""
    numbers = count()
    ready = threading.Barrier(num_clients)

    def client(_: int) -> list[float]:
        connection = HTTPConnection(address)
        times = []
        ready.wait()
        end = time.perf_counter() + SECONDS
        while (start := time.perf_counter()) < end:
            content = json.dumps(body(next(numbers)))
            connection.request("POST", path, content, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                sys.exit(f"{path} answered {response.status}")
            times.append(time.perf_counter() - start)
        connection.close()
        return times

    start = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        times = [seconds for client_times in pool.map(client, range(num_clients)) for seconds in client_times]
    return times, time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    serve(parser.parse_args().index)
