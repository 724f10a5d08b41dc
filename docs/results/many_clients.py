"""Clients of a server, many at once.

python docs/results/many_clients.py --model tiny       # vectors: rows of the table of docs/guide/service.md
python docs/results/many_clients.py many/1000.index    # also searches, as in the last table of many_files.md

Beside the answers of the server stand those of a plain FastAPI with a lock around the same model, and the items that
`encode` gives in one process in batches of 64. This process, which has all clients, runs on the first core of this
machine, and what it measures on the last one, each with one thread.
"""

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import soundfile
from many_files import ONEPEACE, words
from PIL import Image

HERE = [sys.executable, __file__]
CORES = sorted(os.sched_getaffinity(0))
BATCH = 64
CLIENTS = {"text": (1, 8, 64, 256), "image": (1, 8, 32), "audio": (1, 8), "search": (1, 8, 64)}
KINDS = {"text": "short texts", "image": "pictures of 12 megapixels", "audio": "sounds of 5 s", "search": "searches"}


class Load(NamedTuple):
    """What clients got."""

    rate: float
    """Answers a second."""
    median: float
    late: float
    """99th percentile of the seconds of an answer."""


def photograph(number: int) -> bytes:
    """A JPEG of 4000 by 3000 points, about as large as that of a camera."""
    pixels = np.random.default_rng(number).integers(0, 256, (300, 400, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((4000, 3000), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def sound(number: int) -> bytes:
    """A WAV of 5 seconds."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(number).normal(0, 0.1, 5 * 16_000), 16_000, format="WAV")
    return buffer.getvalue()


def contents(kind: str) -> list[Any]:
    """Texts, files, or queries, that are sent in turn."""
    if kind in ("text", "search"):
        return [words(number) for number in range(2000)]
    return [{"image": photograph, "audio": sound}[kind](number) for number in range(8)]


def bodies(kind: str) -> tuple[str, list[bytes]]:
    """The path of a request, and bodies."""
    if kind == "search":
        return "/search", [json.dumps({"text": text}).encode() for text in contents(kind)]
    requests = []
    for content in contents(kind):
        part = content if kind == "text" else {kind: base64.b64encode(content).decode()}
        requests.append(json.dumps({"input": [part]}).encode())
    return "/v1/embeddings", requests


# What runs on a core of its own


def encode(model: str, kind: str, seconds: float) -> float:
    """Items a second of `encode` in one process; pictures and sounds with their decoding."""
    import onepeace

    embedder = onepeace.load(model, device="cpu")
    items = contents(kind)
    batch = [{kind: items[number % len(items)]} for number in range(BATCH)]
    embedder.encode(batch[:8], progress=False)
    start = time.perf_counter()
    count = 0
    while time.perf_counter() - start < seconds:
        embedder.encode(batch, batch_size=BATCH, progress=False)
        count += BATCH
    return count / (time.perf_counter() - start)


def serve_plainly(model: str) -> None:
    """Serve a model as a first draft would: one lock around it."""
    import uvicorn
    from fastapi import FastAPI

    import onepeace

    embedder = onepeace.load(model, device="cpu")
    lock = threading.Lock()
    app = FastAPI()

    @app.post("/v1/embeddings")
    def embeddings(body: dict[str, Any]) -> dict[str, Any]:
        items = []
        for part in body["input"]:
            item = {"text": part} if isinstance(part, str) else part
            items.append({key: base64.b64decode(data) if key != "text" else data for key, data in item.items()})
        with lock:
            vectors = embedder.encode(items, progress=False)
        return {"data": [{"embedding": vector.tolist()} for vector in vectors]}

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))

    async def run() -> None:
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        print(f"FastAPI at http://127.0.0.1:{port}", flush=True)
        await serving

    asyncio.run(run())


@contextmanager
def on_last_core(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process on the last core, with one thread; ended at the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603 (our own)
    os.sched_setaffinity(process.pid, {CORES[-1]})
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def serving(command: list[str]) -> Iterator[int]:
    """The port of a server."""
    with on_last_core(command) as process:
        line = process.stdout.readline()  # type: ignore[union-attr]
        yield int(line.split(";")[0].rstrip().rstrip("/").rpartition(":")[2])


# The clients


def load(port: int, kind: str, num_clients: int, seconds: float) -> Load:
    """Ask for some seconds, each client one question after another."""
    path, requests = bodies(kind)
    header = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    in_turn = itertools.cycle([(header % len(request)).encode() + request for request in requests])
    times: list[float] = []

    async def client(end: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        while (start := time.perf_counter()) < end:
            writer.write(next(in_turn))
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head[:20]:
                sys.exit(f"{path} answered {head[:200]!r}")
            length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
            await reader.readexactly(int(length))
            times.append(time.perf_counter() - start)
        writer.close()

    async def all_clients() -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(*(client(end) for _ in range(num_clients)))

    start = time.perf_counter()
    asyncio.run(all_clients())
    rate = len(times) / (time.perf_counter() - start)
    return Load(rate, float(np.median(times)), float(np.percentile(times, 99)))


def rows(title: str, port: int, kind: str, encoded: float | None, seconds: float) -> None:
    load(port, kind, 2, min(seconds, 2.0))  # what the first requests load
    for num_clients in CLIENTS[kind]:
        result = load(port, kind, num_clients, seconds)
        share = f"{result.rate / encoded:.2f}" if encoded else ""
        cells = [KINDS[kind], title, num_clients, f"{result.rate:.1f}", share]
        cells += [f"{1000 * result.median:.0f}", f"{1000 * result.late:.0f}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("index", nargs="?", help="an index, whose searches are measured too")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--kinds", default="text,image,audio")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--encode", metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.encode:
        print(encode(args.model, args.encode, args.seconds))
        return
    if args.plain:
        serve_plainly(args.model)
        return
    os.sched_setaffinity(0, {CORES[0]})
    model = ["--model", args.model]
    served = [*ONEPEACE, "serve", "--port", "0", "--device", "cpu", "--log", "off"]
    kinds = args.kinds.split(",")
    print("| what | server | clients | answers a second | of encode | median, ms | 99th percentile, ms |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in kinds:
        command = [*HERE, "--encode", kind, "--seconds", str(args.seconds), *model]
        with on_last_core(command) as process:
            encoded = float(process.communicate()[0])
        print(f"| {KINDS[kind]} | encode, {BATCH} at once | | {encoded:.1f} | 1 | | |", flush=True)
        with serving([*served, *model]) as port:
            rows("onepeace serve", port, kind, encoded, args.seconds)
        with serving([*HERE, "--plain", *model]) as port:
            rows("FastAPI with a lock", port, kind, encoded, args.seconds)
    if args.index:
        with serving([*served, args.index]) as port:
            rows("onepeace serve", port, "search", None, args.seconds)


if __name__ == "__main__":
    main()
