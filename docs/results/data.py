"""Measures the reader of training data: python docs/results/data.py [MEASURE ...], those of `MEASURES`.

Prints the tables of docs/results/data.md. Shards of synthetic photographs are made in a temporary folder.
"""

import io
import json
import math
import multiprocessing
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from onepeace.config import build
from onepeace.data.builder import BatchBuilder
from onepeace.data.config import DataConfig
from onepeace.data.reader import Reader
from onepeace.data.source import open_sources
from onepeace.data.steps import Steps, loader
from onepeace.files.table import markdown_table
from onepeace.processors import PROCESSORS

ROUNDS = 5
PAIR = "image"
SAMPLES = 4
"""Samples of a shard whose requests are counted."""


class Tokens:
    """An adapter that counts the tokens of a picture."""

    def token_lengths(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.full((len(inputs["pixels"]),), 196)


# Shards


def photograph(seed: int) -> bytes:
    """A JPEG of about 45 kB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (72, 96, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((400, 300), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def caption_of(key: str) -> bytes:
    return json.dumps({"captions": [f"photograph {key}"], "label": "thing"}).encode()


def write_shards(folder: Path, shards: int, samples: int, pictures: list[bytes]) -> None:
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number in range(samples):
                key = f"{shard:05}{number:05}"
                picture = pictures[number % len(pictures)]
                for name, data in ((f"{key}.jpg", picture), (f"{key}.json", caption_of(key))):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def link_shards(folder: Path, shards: int) -> None:
    """Make many shards of the first one, by hard links."""
    for shard in range(1, shards):
        os.link(folder / "00000.tar", folder / f"{shard:05}.tar")


def config_of(root: str, shards: str = "*.tar", **options: Any) -> DataConfig:
    return build(DataConfig, {"train": [{"shards": shards, "pair": [PAIR]}], "root": root, **options}, "data")


def steps_of(config: DataConfig, batch_size: int, rank: int = 0, world_size: int = 1) -> Steps:
    processors = {PAIR: PROCESSORS[PAIR](size=224)}
    builder = BatchBuilder(config, processors, {PAIR: Tokens()})
    return Steps(builder, open_sources(config), 0, {PAIR: batch_size}, None, rank, world_size)


def reader_of(config: DataConfig, batch_size: int, rank: int, world_size: int, machines: int = 1) -> Reader:
    rows = batch_size // world_size
    return Reader(open_sources(config), config, 0, batch_size, range(rank * rows, (rank + 1) * rows), machines)


# Throughput of the loader


class Files(torch.utils.data.Dataset[torch.Tensor]):
    """The pictures of a folder with their captions, for torch's DataLoader."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.jpg"))
        self.processor = PROCESSORS[PAIR](size=224)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        path = self.paths[number]
        json.loads(path.with_suffix(".json").read_bytes())
        return self.processor.decode(path.read_bytes())


def our_batches(folder: Path, batch_size: int, batches: int, workers: int) -> Iterator[Any]:
    return loader(steps_of(config_of(str(folder)), batch_size), 0, batches, workers)


def webdataset_batches(folder: Path, batch_size: int, batches: int, workers: int) -> Iterator[Any]:
    import webdataset

    processor = PROCESSORS[PAIR](size=224)

    def decoded(sample: dict[str, Any]) -> torch.Tensor:
        json.loads(sample["json"])
        return processor.decode(sample["jpg"])

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(shards),
        webdataset.split_by_worker,
        webdataset.shuffle(100),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(1000),
        webdataset.map(decoded),
        webdataset.batched(batch_size, collation_fn=processor.collate),
    )
    return iter(torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=workers))


def file_batches(folder: Path, batch_size: int, batches: int, workers: int) -> Iterator[Any]:
    files = Files(folder / "files")
    return iter(
        torch.utils.data.DataLoader(
            files, batch_size, shuffle=True, num_workers=workers, drop_last=True, collate_fn=files.processor.collate
        )
    )


CANDIDATES: dict[str, Callable[[Path, int, int, int], Iterator[Any]]] = {
    "onepeace": our_batches,
    "webdataset": webdataset_batches,
    "DataLoader over files": file_batches,
}


def items_per_second(batches: Iterator[Any], batch_size: int, count: int) -> float:
    """Speed after the first two batches, which include the start of the workers."""
    next(batches)
    next(batches)
    start = time.perf_counter()
    for _ in range(count - 2):
        next(batches)
    seconds = time.perf_counter() - start
    del batches
    return (count - 2) * batch_size / seconds


def measure_loader(folder: Path) -> None:
    pictures = [photograph(seed) for seed in range(50)]
    write_shards(folder, shards=16, samples=200, pictures=pictures)
    (folder / "files").mkdir()
    for number in range(3200):
        (folder / "files" / f"{number:05}.jpg").write_bytes(pictures[number % len(pictures)])
        (folder / "files" / f"{number:05}.json").write_bytes(caption_of(str(number)))
    rows = []
    for workers in (1, 2):
        speeds: dict[str, list[float]] = {name: [] for name in CANDIDATES}
        for _ in range(ROUNDS):
            for name, make in CANDIDATES.items():
                speeds[name].append(items_per_second(make(folder, 32, 40, workers), 32, 40))
        medians = {name: median(values) for name, values in speeds.items()}
        others = max(value for name, value in medians.items() if name != "onepeace")
        ratio = f"{medians['onepeace'] / others:.2f}"
        rows.append([str(workers), *(f"{value:.0f}" for value in medians.values()), ratio])
    print(markdown_table(["workers", *(f"{name}, items/s" for name in CANDIDATES), "onepeace / better other"], rows))


# A window, and the ceiling of a job


def measure_window(folder: Path) -> None:
    write_shards(folder, shards=1, samples=1000, pictures=[b"x" * 2000])
    link_shards(folder, 100)
    config = config_of(str(folder))
    rows = []
    for name in ("first time", "indexes cached", "indexes cached, again"):
        reader = reader_of(config, 64, 0, 1)
        start = time.perf_counter()
        listed = 0
        for lane in reader.lanes.values():
            listed += lane.window(0).cursor["samples"]
        microseconds = (time.perf_counter() - start) / listed * 1e6
        rows.append([name, str(listed), f"{microseconds:.2f}"])
    print(markdown_table(["windows of one process", "samples", "µs a sample"], rows))


def measure_ceiling(folder: Path) -> None:
    """Items per second of a whole job, if every process were as fast as this one: positions are read and parsed."""
    write_shards(folder, shards=1, samples=1000, pictures=[b"x" * 2000])
    link_shards(folder, 1024)
    config = config_of(str(folder))
    batch_size = 32768
    rows = []
    for processes in (1, 8, 64, 512):
        reader = reader_of(config, batch_size, rank=processes // 2, world_size=processes)
        seconds = []
        for step in range(6):
            start = time.perf_counter()
            reader.release(step)
            for item in reader.items(step):
                candidates, number = item.lane.at(item.position)
                candidates.read(number)
            reader.cursors(step)
            seconds.append(time.perf_counter() - start)
        step_seconds = sum(seconds[2:]) / len(seconds[2:])
        rows.append(
            [str(processes), str(len(reader.lanes)), f"{step_seconds * 1e3:.1f}", f"{batch_size / step_seconds:.0f}"]
        )
    print(markdown_table(["processes", "lanes of each", "ms a step", "items/s of the job"], rows))


def measure_start(folder: Path) -> None:
    """Time to the first batch with nothing cached, and memory, by the number of shards."""
    context = multiprocessing.get_context("fork")
    rows = []
    for shards in (20, 200, 2000):
        root = folder / str(shards)
        root.mkdir()
        write_shards(root, shards=1, samples=1000, pictures=[photograph(0)])
        link_shards(root, shards)
        results = context.SimpleQueue()
        process = context.Process(target=take_steps, args=(str(root), str(folder / f"cache-{shards}"), results))
        process.start()
        process.join()
        first, total, megabytes = results.get()
        rows.append([str(shards), f"{1000 * shards}", f"{first:.2f}", f"{total:.2f}", f"{megabytes:.0f}"])
    print(
        markdown_table(
            ["shards", "samples", "first batch after, s", "30 batches, s", "memory of the process, MB"], rows
        )
    )


def take_steps(root: str, cache: str, results: Any) -> None:
    os.environ["ONEPEACE_CACHE"] = cache
    start = time.perf_counter()
    steps = steps_of(config_of(root), 64)
    steps[0]
    first = time.perf_counter() - start
    for number in range(1, 30):
        steps[number]
    total = time.perf_counter() - start
    results.put((first, total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))


# What is opened and read


def read_epoch(root: str, shards: str, rank: int, world_size: int, cache: str, results: Any) -> None:
    """Read the samples and pictures of a process for about an epoch; reports opened shards and bytes read."""
    os.environ["ONEPEACE_CACHE"] = cache
    opened: set[str] = set()

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith(".tar"):
            opened.add(str(arguments[0]))

    config = config_of(root, shards)
    sys.addaudithook(note)
    before = bytes_read()
    reader = reader_of(config, 64, rank, world_size)
    for step in range(80):
        reader.release(step)
        for item in reader.items(step):
            candidates, number = item.lane.at(item.position)
            candidates.read(number).read(PAIR)
    results.put((len(opened), bytes_read() - before))


def bytes_read() -> int:
    """Bytes that this process has read from files."""
    for line in Path("/proc/self/io").read_text().splitlines():
        name, _, value = line.partition(": ")
        if name == "rchar":
            return int(value)
    raise RuntimeError("/proc/self/io has no rchar")


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, and counts requests and bytes."""

    counts: ClassVar[Counter[str]] = Counter()

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.counts["requests"] += 1
        self.counts["bytes"] += os.path.getsize(self.translate_path(self.path))
        super().do_GET()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of this folder."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        os.environ["no_proxy"] = "127.0.0.1"
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run_processes(
    root: str, shards: str, world_size: int, ranks: list[int], caches: list[str]
) -> list[tuple[int, int]]:
    """Opened shards and bytes of each process."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    started = []
    for rank, cache in zip(ranks, caches, strict=True):
        process = context.Process(target=read_epoch, args=(root, shards, rank, world_size, cache, results))
        process.start()
        started.append(process)
    for process in started:
        process.join()
    return [results.get() for _ in started]


def measure_reads(folder: Path) -> None:
    shards_folder = folder / "shards"
    shards_folder.mkdir()
    write_shards(shards_folder, shards=64, samples=80, pictures=[photograph(seed) for seed in range(80)])
    megabytes = sum(path.stat().st_size for path in shards_folder.iterdir()) / 1e6
    print(f"64 shards, {megabytes:.0f} MB, 5,120 samples, one epoch, nothing cached\n")
    rows = []
    for world_size in (1, 2, 4, 64):
        ranks = list(range(min(world_size, 4)))
        caches = [str(folder / f"local-{world_size}-{rank}") for rank in ranks]
        found = run_processes(str(shards_folder), "*.tar", world_size, ranks, caches)
        opened = " ".join(str(count) for count, _ in found)
        read = " ".join(f"{count / 1e6:.1f}" for _, count in found)
        rows.append([str(world_size), "local", opened, read, ""])
    with serving(shards_folder) as address:
        for world_size in (1, 2, 4):
            for sharing in ("a cache each", "one cache"):
                Handler.counts.clear()
                caches = [str(folder / f"http-{world_size}-{sharing}-{rank}") for rank in range(world_size)]
                if sharing == "one cache":
                    caches = caches[:1] * world_size
                found = run_processes(address, "{00000..00063}.tar", world_size, list(range(world_size)), caches)
                opened = " ".join(str(count) for count, _ in found)
                counts = f"{Handler.counts['requests']}, {Handler.counts['bytes'] / 1e6:.0f}"
                rows.append([str(world_size), f"http, {sharing}", opened, "", counts])
    print(markdown_table(["processes", "shards are", "shards opened by each", "MB read by each", "requests, MB"], rows))


# Requests of several machines


def requests_an_epoch(folder: Path, shards: int, batch_size: int, machines: int, **options: Any) -> tuple[int, float]:
    """Number of lanes, and requests for each shard while machines with a cache each read an epoch."""
    Handler.counts.clear()
    with serving(folder) as address, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        config = config_of(address, f"{{00000..{shards - 1:05}}}.tar", shuffle_buffer=200, **options)
        for machine in range(machines):
            os.environ["ONEPEACE_CACHE"] = f"{caches}/{machine}"
            reader = reader_of(config, batch_size, machine, machines, machines)
            for step in range(shards * SAMPLES // batch_size):
                reader.release(step)
                for item in reader.items(step):
                    item.lane.at(item.position)
    return reader.num_lanes, Handler.counts["requests"] / shards


def power_of_two(batch_size: int) -> int:
    """Number of lanes by default, before it could be any."""
    return math.gcd(batch_size, 64)


def measure_requests(folder: Path) -> None:
    """Requests for a shard in an epoch, with lanes as before (a power of two), by default, and by source."""
    write_shards(folder, shards=1, samples=SAMPLES, pictures=[b"x" * 200])
    link_shards(folder, 96)
    rows = []
    for batch_size, shards in ((96, 96), (36, 36)):
        for machines in (1, 2, 3, 4, 12):
            row = [str(batch_size), str(shards), str(machines)]
            for options in ({"lanes": power_of_two(batch_size)}, {}, {"batches": "by_source"}):
                lanes, requests = requests_an_epoch(folder, shards, batch_size, machines, **options)
                row += [str(lanes), f"{requests:.2f}"]
            rows.append(row)
    columns: list[str] = []
    for lanes in ("lanes before", "lanes now", "lanes by source"):
        columns += [lanes, "requests"]
    print(markdown_table(["batch", "shards", "machines", *columns], rows))


MEASURES = {
    "loader": measure_loader,
    "window": measure_window,
    "ceiling": measure_ceiling,
    "start": measure_start,
    "reads": measure_reads,
    "requests": measure_requests,
}


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or MEASURES:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["ONEPEACE_CACHE"] = f"{folder}/cache"
            print(f"\n## {name}\n")
            MEASURES[name](Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
