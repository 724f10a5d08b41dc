"""Thousands of large photographs and long sounds: what it costs to index them, to search them and to serve them.

python docs/results/many_files.py make FOLDER COUNT           # writes the files, 1.5 MB each
python docs/results/many_files.py measure FOLDER...           # rows of the first table, for each folder
python docs/results/many_files.py measure FOLDER --only-build # of the first without decoding, the model and `embed`
python docs/results/many_files.py measure FOLDER --open-clip  # rows of the second, beside open_clip's own API
python docs/results/many_files.py serve INDEX                 # rows of the third
python docs/results/many_files.py graph                       # many_files.svg, from the tables of many_files.md

`measure` leaves FOLDER.index, which `serve` takes, and writes one file in a hundred of FOLDER anew. Everything
runs in processes of its own, whose use of processors and memory the system counts.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from PIL import Image, ImageChops, ImageOps

HERE = Path(__file__)
SAMPLES = HERE.parents[2] / "data" / "samples"
PAGE = HERE.with_suffix(".md")
ONEPEACE = [sys.executable, "-m", "onepeace"]

WIDTH, HEIGHT = 4000, 3000
MARGIN = 400
"""Pixels by which an enlarged sample is larger than a picture that is cut from it."""
NOISE = 24
"""Largest value added to a pixel: with it, a picture has about 1.5 MB at QUALITY."""
QUALITY = 80
RATE, SECONDS = 44_100, 60
SOUND_EVERY = 10
SOUNDS_OF_A_JOB = 50
PER_FOLDER = 1000

WINDOW, HOP, BATCH = 10.0, 5.0, 32
"""Those of `onepeace index build`."""
BLOCK = 256
"""Files that are decoded before their vectors are computed, where the model is measured alone."""
ARCHITECTURE = "ViT-B-32"
SEARCHES = 30
COMMANDS = 5

CLIENTS = (1, 8, 64)
SERVING_SECONDS = 2
SUBJECTS = "dog cat bird horse boat beach forest train river piano storm crowd engine child mountain flower".split()
PLACES = ["at night", "in the rain", "on a beach", "in the snow", "far away", "in a room", "by the sea", "in a city"]


# What is measured: the files


def make(folder: Path, num_files: int) -> None:
    """Write pictures and, in place of each tenth, a sound; no two are equal."""
    for number in range(0, num_files, PER_FOLDER):
        _path(folder, number).parent.mkdir(parents=True, exist_ok=True)
        _path(folder, number, sound=True).parent.mkdir(parents=True, exist_ok=True)
    write_files(folder, range(num_files), seed=0)


def write_files(folder: Path, numbers: Iterable[int], seed: int) -> None:
    """Write the files with these numbers; with another seed, their contents are others."""
    sounds = []
    by_sample: dict[Path, list[int]] = {}
    samples = sorted((SAMPLES / "images").iterdir())
    for number in numbers:
        if number % SOUND_EVERY == SOUND_EVERY - 1:
            sounds.append(number)
        else:
            by_sample.setdefault(samples[number % len(samples)], []).append(number)
    with ProcessPoolExecutor() as pool:
        jobs = [pool.submit(write_pictures, folder, *job, seed) for job in by_sample.items()]
        for start in range(0, len(sounds), SOUNDS_OF_A_JOB):
            jobs.append(pool.submit(write_sounds, folder, sounds[start : start + SOUNDS_OF_A_JOB], seed))
        for job in jobs:
            job.result()


def write_pictures(folder: Path, sample: Path, numbers: Iterable[int], seed: int) -> None:
    """Write pictures cut from one sample, which is enlarged, moved, mirrored and covered with noise."""
    size = (WIDTH + MARGIN, HEIGHT + MARGIN)
    enlarged = ImageOps.fit(Image.open(sample).convert("RGB"), size, Image.Resampling.BICUBIC)
    grain = np.random.default_rng(0).integers(0, NOISE, (size[1], size[0], 3), np.uint8)
    noise = Image.fromarray(grain)
    for number in numbers:
        rng = random.Random(f"{seed} {number}")  # noqa: S311
        picture = _cut(enlarged, rng)
        if rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        picture = ImageChops.add(picture, _cut(noise, rng), offset=-NOISE // 2)
        picture.save(_path(folder, number), quality=QUALITY)


def _cut(image: Image.Image, rng: random.Random) -> Image.Image:
    """WIDTH x HEIGHT pixels of an image, anywhere in it."""
    left, top = rng.randrange(MARGIN), rng.randrange(MARGIN)
    return image.crop((left, top, left + WIDTH, top + HEIGHT))


def write_sounds(folder: Path, numbers: Iterable[int], seed: int) -> None:
    """Write sounds of a minute: samples one after another, in any order and loudness, and noise."""
    clips = []
    for path in sorted((SAMPLES / "sounds").iterdir()):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        positions = np.arange(0, len(mono), rate / RATE)
        clips.append(np.interp(positions, np.arange(len(mono)), mono).astype(np.float32))
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        with soundfile.SoundFile(_path(folder, number, sound=True), "w", RATE, 1, format="OGG") as file:
            num_left = RATE * SECONDS
            while num_left:
                clip = clips[rng.integers(len(clips))][:num_left] * rng.uniform(0.3, 0.9)
                file.write(clip + 0.003 * rng.standard_normal(len(clip), np.float32))
                num_left -= len(clip)


def _path(folder: Path, number: int, *, sound: bool = False) -> Path:
    part = f"{number // PER_FOLDER:03}"
    if sound:
        return folder / "sounds" / part / f"REC_{number:06}.ogg"
    return folder / "pictures" / part / f"IMG_{number:06}.jpg"


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# What a process costs


class Cost(NamedTuple):
    """What a process and its children have used."""

    seconds: float
    processor: float
    """Seconds of all processors, of the user and of the system."""
    memory: float
    """MB, the most at any time."""
    output: str


def cost_of(command: list[str], environment: dict[str, str]) -> Cost:
    """Run a command to its end.

    The memory of a process is at least that of the one that starts it, so this one loads no model.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603 (our own)
    output = process.stdout.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


def cost_of_stage(stage: str, folder: Path, model: str, environment: dict[str, str]) -> Cost:
    """Run one of STAGES in a process of its own: times are those of its work, without imports and the model's start."""
    command = [sys.executable, str(HERE), "stage", stage, str(folder), model]
    cost = cost_of(command, environment)
    times = json.loads(cost.output.splitlines()[-1])
    return cost._replace(seconds=times["seconds"], processor=times["processor"])


class Stopwatch:
    """Sums the time, and the processors' time, of the blocks that it is the context of."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.processor = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter(), self._used()

    def __exit__(self, *_: object) -> None:
        start, used = self._start
        self.seconds += time.perf_counter() - start
        self.processor += self._used() - used

    @staticmethod
    def _used() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


# The stages, each in its own process


def decode(paths: list[Path], model: str, watch: Stopwatch) -> None:
    """Decode the files as an index does, in as many threads, and keep nothing."""
    from onepeace.threads import decode_ahead

    embedder = _load(model)
    with watch:
        for _, _, pieces in decode_ahead(paths, lambda path: _pieces(embedder, path), ahead=4 * BATCH):
            if isinstance(pieces, Exception):
                raise pieces


def compute(paths: list[Path], model: str, watch: Stopwatch) -> None:
    """Compute the vectors of files that have been decoded, a block at a time."""
    from onepeace.embed.items import CompositeItem, Part
    from onepeace.threads import decode_ahead

    class Decoded(CompositeItem):
        def __init__(self, path: Path, pieces: list[Any]) -> None:
            self.name = str(path)
            self.part = Part(_modality(path), pieces)

        def parts(self, pieces: Callable[[str, object], Iterable[Any]]) -> list[Part]:
            return [self.part]

    embedder = _load(model)
    for start in range(0, len(paths), BLOCK):
        decoded = decode_ahead(paths[start : start + BLOCK], lambda path: _pieces(embedder, path), ahead=4 * BATCH)
        items = [Decoded(path, pieces) for _, path, pieces in decoded if isinstance(pieces, list)]
        with watch:
            for result in embedder.stream(items, long="windows", batch_size=BATCH):
                if result.error is not None:
                    raise result.error


def loop(paths: list[Path], model: str, watch: Stopwatch, workers: int = 0) -> None:
    """Encode pictures as the readme of open_clip does, in batches; with workers, by a DataLoader of torch."""
    import open_clip
    import torch

    network, _, preprocess = open_clip.create_model_and_transforms(model.removeprefix("open_clip:"))
    network.eval()

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return preprocess(Image.open(paths[index]))

    with watch, torch.inference_mode():
        for pictures in torch.utils.data.DataLoader(Pictures(), batch_size=BATCH, num_workers=workers):
            vectors = network.encode_image(pictures)
            vectors /= vectors.norm(dim=-1, keepdim=True)


def loop_with_workers(paths: list[Path], model: str, watch: Stopwatch) -> None:
    loop(paths, model, watch, workers=os.cpu_count() or 1)


STAGES: dict[str, Callable[[list[Path], str, Stopwatch], None]] = {
    "decode": decode,
    "compute": compute,
    "loop": loop,
    "loop_with_workers": loop_with_workers,
}


def run_stage(stage: str, folder: Path, model: str) -> None:
    """Print the times of a stage as JSON."""
    watch = Stopwatch()
    STAGES[stage](files_of(folder), model, watch)
    print(json.dumps({"seconds": watch.seconds, "processor": watch.processor}))


def _load(model: str) -> Any:
    import onepeace

    return onepeace.load(model, dtype="float32")


def _pieces(embedder: Any, path: Path) -> list[Any]:
    """The decoded picture, or the windows of the sound."""
    return list(embedder.processor(_modality(path)).windows(path, WINDOW, HOP))


def _modality(path: Path) -> str:
    return "audio" if path.suffix == ".ogg" else "image"


# The tables


def measure(folder: Path, *, only_build: bool, beside_open_clip: bool) -> None:
    """Print the rows of a folder; its index stays beside it."""
    scratch = folder.with_name(f"{folder.name}.scratch")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    environment = {**os.environ, "ONEPEACE_CACHE": str(scratch / "cache")}
    try:
        if beside_open_clip:
            measure_open_clip(folder / "pictures", scratch, environment)
        else:
            measure_ours(folder, scratch, environment, only_build=only_build)
    finally:
        shutil.rmtree(scratch)


def measure_ours(folder: Path, scratch: Path, environment: dict[str, str], *, only_build: bool) -> None:
    """Decoding, the model, a build, `embed`, searches and an update, with the bundled model."""
    num_files = len(files_of(folder))
    index = folder.with_name(f"{folder.name}.index")
    build = [*ONEPEACE, "index", "build", str(index), str(folder), "--dtype", "float32", "--force"]
    embed = [*ONEPEACE, "embed", str(folder), "-o", str(scratch / "vectors.npz"), "--dtype", "float32"]
    if only_build:
        print_row("`onepeace index build`", num_files, cost_of(build, environment))
    else:
        costs = {
            "decoding alone": cost_of_stage("decode", folder, "tiny", environment),
            "the model alone": cost_of_stage("compute", folder, "tiny", environment),
            "`onepeace index build`": cost_of(build, environment),
            "`onepeace embed`": cost_of(embed, environment),
        }
        print_costs(num_files, costs)
    print_search(num_files, index, environment)
    changed = random.Random(num_files).sample(range(num_files), max(1, num_files // 100))  # noqa: S311
    write_files(folder, changed, seed=time.time_ns())
    update = [*ONEPEACE, "index", "update", str(index), "--dtype", "float32"]
    print_row("update, 1 % of the files changed", num_files, cost_of(update, environment))
    print_row("update, nothing changed", num_files, cost_of(update, environment))


def measure_open_clip(pictures: Path, scratch: Path, environment: dict[str, str]) -> None:
    """The same network with random weights: by a loop over open_clip's API, and by a build."""
    model = f"open_clip:local-dir:{scratch / 'model'}"
    cost_of([sys.executable, str(HERE), "save", str(scratch / "model")], environment)
    few = scratch / "few"
    few.mkdir()
    shutil.copy(files_of(pictures)[0], few)

    def build(folder: Path) -> list[str]:
        index = scratch / f"{folder.name}.index"
        return [*ONEPEACE, "index", "build", str(index), str(folder), "--model", model, "--dtype", "float32"]

    cost_of(build(few), environment)  # the words of the match are encoded once for each model
    costs = {
        "decoding alone": cost_of_stage("decode", pictures, model, environment),
        "the model alone": cost_of_stage("compute", pictures, model, environment),
        "`onepeace index build`": cost_of(build(pictures), environment),
        "loop over open_clip": cost_of_stage("loop", pictures, model, environment),
        "the same with a DataLoader": cost_of_stage("loop_with_workers", pictures, model, environment),
    }
    print_costs(len(files_of(pictures)), costs)


def save_open_clip(folder: Path) -> None:
    """Write a model with random weights as open_clip does."""
    import open_clip
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    folder.mkdir()
    model, _, _ = open_clip.create_model_and_transforms(ARCHITECTURE)
    config = open_clip.get_model_config(ARCHITECTURE)
    save_config_for_hf(model, folder / "open_clip_config.json", config)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def print_costs(num_files: int, costs: dict[str, Cost]) -> None:
    """Print a row for each cost, with its ratio to that of decoding and of the model together."""
    decoding, model = costs["decoding alone"], costs["the model alone"]
    for name, cost in costs.items():
        seconds = cost.seconds / (decoding.seconds + model.seconds)
        processor = cost.processor / (decoding.processor + model.processor)
        print_row(name, num_files, cost, f"{seconds:.2f}, {processor:.2f}")


def print_row(name: str, num_files: int, cost: Cost, ratio: str = "") -> None:
    columns = [name, f"{num_files:,}", f"{cost.seconds:.1f}", f"{cost.processor:.1f}", f"{cost.memory:.0f}", ratio]
    print(f"| {' | '.join(columns)} |", flush=True)


def print_search(num_files: int, index: Path, environment: dict[str, str]) -> None:
    """Print the cost of a whole command, the median one, and the time of a search in an open index."""
    command = [*ONEPEACE, "search", str(index), "a dog on a beach"]
    costs = [cost_of(command, environment) for _ in range(COMMANDS + 1)][1:]
    print_row("a search, the whole command", num_files, sorted(costs)[COMMANDS // 2])
    milliseconds = float(cost_of([sys.executable, str(HERE), "searches", str(index)], environment).output)
    print(f"| a search in an open index | {num_files:,} | {milliseconds:.1f} ms | | | |", flush=True)


def print_milliseconds(index: Path) -> None:
    """Print the median time of a search in an open index."""
    from onepeace.index import Index, Query

    times = []
    with Index.open(index) as opened:
        opened.search(Query(text="a dog"))
        for number in range(SEARCHES):
            start = time.perf_counter()
            opened.search(Query(text=words(number)))
            times.append(1000 * (time.perf_counter() - start))
    print(statistics.median(times))


def words(number: int) -> str:
    """A query; 128 differ, and more repeat them with another number."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    place = PLACES[number // len(SUBJECTS) % len(PLACES)]
    turn = number // len(SUBJECTS) // len(PLACES)
    return f"a {subject} {place} {turn or ''}".strip()


# The server


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
        end = time.perf_counter() + SERVING_SECONDS
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


# The graph


COLOURS = {
    "`onepeace index build`": "#d62728",
    "decoding alone": "#1f77b4",
    "the model alone": "#2ca02c",
    "update, 1 % of the files changed": "#ff7f0e",
}
GRAPH_WIDTH, GRAPH_HEIGHT, EDGE = 640, 400, 72
FILES, TIMES = (1_000, 10_000, 100_000), (1, 10, 100, 1_000, 10_000, 100_000)


def graph(page: str) -> str:
    """SVG of seconds by files, from the rows of the first table of a page; dashed: a straight line to 100,000 files."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {GRAPH_WIDTH} {GRAPH_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{GRAPH_WIDTH}" height="{GRAPH_HEIGHT}" fill="white"/>',
        _text(GRAPH_WIDTH / 2, 24, "Seconds by files; dashed: by a straight line"),
    ]
    for files in FILES:
        parts.append(_text(_place(files, 1)[0], GRAPH_HEIGHT - 30, f"{files:,}"))
    for seconds in TIMES:
        height = _place(FILES[0], seconds)[1]
        parts.append(_line([(EDGE, height), (GRAPH_WIDTH - EDGE, height)], "#dddddd"))
        parts.append(_text(EDGE / 2, height + 4, f"{seconds:,} s"))
    for row, (name, colour) in enumerate(COLOURS.items()):
        points = _points(page, name)
        if not points:
            continue
        corners = [_place(files, seconds) for files, seconds in points]
        slope = points[-1][1] / points[-1][0]
        end = _place(FILES[-1], slope * FILES[-1])
        parts.append(_line(corners, colour))
        parts.append(_line([corners[-1], end], colour, dashed=True))
        parts.append(_text(3 * EDGE, EDGE + 18 * (row + 1), name.strip("`"), colour))
    return "\n".join([*parts, "</svg>\n"])


def _points(page: str, name: str) -> list[tuple[int, float]]:
    """Files and seconds of the rows of a name in the first table."""
    points = []
    for line in page.split("## Beside open_clip")[0].splitlines():
        if line.startswith(f"| {name} |"):
            _, _, files, seconds, *_ = line.split("|")
            if seconds.strip():
                points.append((int(files.replace(",", "")), float(seconds)))
    return points


def _place(files: float, seconds: float) -> tuple[float, float]:
    """Position of a point in the graph, whose axes are logarithmic."""
    across = math.log(files / FILES[0]) / math.log(FILES[-1] / FILES[0])
    up = math.log(max(seconds, TIMES[0]) / TIMES[0]) / math.log(TIMES[-1] / TIMES[0])
    return EDGE + across * (GRAPH_WIDTH - 2 * EDGE), GRAPH_HEIGHT - EDGE - up * (GRAPH_HEIGHT - 2 * EDGE)


def _line(corners: list[tuple[float, float]], colour: str, *, dashed: bool = False) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    dashes = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


def _text(x: float, y: float, content: str, colour: str = "black") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" text-anchor="middle" fill="{colour}">{content}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("count", type=int)
    measuring = commands.add_parser("measure")
    measuring.add_argument("folders", type=Path, nargs="+")
    choice = measuring.add_mutually_exclusive_group()
    choice.add_argument("--only-build", action="store_true", help="neither decoding and the model alone, nor `embed`")
    choice.add_argument("--open-clip", action="store_true", help=f"{ARCHITECTURE} beside open_clip's own API")
    serving_parser = commands.add_parser("serve")
    serving_parser.add_argument("index", type=Path)
    commands.add_parser("graph")
    commands.add_parser("save").add_argument("folder", type=Path)
    commands.add_parser("searches").add_argument("index", type=Path)
    stage = commands.add_parser("stage")
    stage.add_argument("stage", choices=STAGES)
    stage.add_argument("folder", type=Path)
    stage.add_argument("model")
    args = parser.parse_args()
    if args.command == "make":
        make(args.folder, args.count)
    elif args.command == "measure":
        for folder in args.folders:
            measure(folder.absolute(), only_build=args.only_build, beside_open_clip=args.open_clip)
    elif args.command == "serve":
        serve(args.index)
    elif args.command == "save":
        save_open_clip(args.folder)
    elif args.command == "searches":
        print_milliseconds(args.index)
    elif args.command == "graph":
        PAGE.with_suffix(".svg").write_text(graph(PAGE.read_text()))
    else:
        run_stage(args.stage, args.folder, args.model)


if __name__ == "__main__":
    main()
