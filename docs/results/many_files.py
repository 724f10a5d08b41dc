"""Thousands of large photographs and long sounds (large_files.py): what it costs to index and to search them.

python docs/results/many_files.py measure FOLDER...               # rows of the first table of many_files.md
python docs/results/many_files.py measure FOLDER --only-build     # without decoding, the model and `embed`
python docs/results/many_files.py measure FOLDER --open-clip      # rows of the second, beside open_clip's own API

Leaves FOLDER.index, and writes one file in a hundred of FOLDER anew. Everything runs in processes of its own, whose use
of processors and memory the system counts.
"""

import argparse
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from large_files import files_of, write_files
from PIL import Image

HERE = Path(__file__)
ONEPEACE = [sys.executable, "-m", "onepeace"]

WINDOW, HOP, BATCH = 10.0, 5.0, 32
"""Those of `onepeace index build`."""
BLOCK = 256
"""Files that are decoded before their vectors are computed, where the model is measured alone."""
ARCHITECTURE = "ViT-B-32"
REACHED = (1_000, 5_000, 10_000, 15_000)
"""Files in an index at which the costs of its build until then are printed; its pictures come first."""
SEARCHES = 30
COMMANDS = 5

SUBJECTS = "dog cat bird horse boat beach forest train river piano storm crowd engine child mountain flower".split()
PLACES = ["at night", "in the rain", "on a beach", "in the snow", "far away", "in a room", "by the sea", "in a city"]


# What a process costs


class Cost(NamedTuple):
    """What a process and its children have used."""

    seconds: float
    processor: float
    """Seconds of all processors, of the user and of the system."""
    memory: float
    """MB, the most at any time."""
    output: str


def cost_of(command: list[str], environment: dict[str, str], watch: Callable[[int], None] | None = None) -> Cost:
    """Run a command to its end, while another thread may watch its process.

    The memory of a process is at least that of the one that starts it, so this one loads no model.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603 (our own)
    if watch is not None:
        threading.Thread(target=watch, args=(process.pid,), daemon=True).start()
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
        cost = cost_of(build, environment, lambda pid: print_reached(pid, index))
        print_row("`onepeace index build`", num_files, cost)
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


def print_reached(pid: int, index: Path) -> None:
    """Print a row whenever a build has stored REACHED files."""
    process = psutil.Process(pid)
    start = time.perf_counter()
    for wanted in REACHED:
        while num_stored(index) < wanted:
            if not process.is_running():
                return
            time.sleep(1)
        times = process.cpu_times()
        memory = process.memory_info().rss / 2**20
        print_row(
            "its first pictures",
            wanted,
            Cost(time.perf_counter() - start, times.user + times.system, memory, ""),
        )


def num_stored(index: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{index}/index.sqlite?mode=ro", uri=True)) as database:
            ((number,),) = database.execute("SELECT count(*) FROM files")
            return number
    except sqlite3.Error:
        return 0


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    measuring = commands.add_parser("measure")
    measuring.add_argument("folders", type=Path, nargs="+")
    choice = measuring.add_mutually_exclusive_group()
    choice.add_argument("--only-build", action="store_true", help="neither decoding and the model alone, nor `embed`")
    choice.add_argument("--open-clip", action="store_true", help=f"{ARCHITECTURE} beside open_clip's own API")
    commands.add_parser("save").add_argument("folder", type=Path)
    commands.add_parser("searches").add_argument("index", type=Path)
    stage = commands.add_parser("stage")
    stage.add_argument("stage", choices=STAGES)
    stage.add_argument("folder", type=Path)
    stage.add_argument("model")
    args = parser.parse_args()
    if args.command == "measure":
        for folder in args.folders:
            measure(folder.absolute(), only_build=args.only_build, beside_open_clip=args.open_clip)
    elif args.command == "save":
        save_open_clip(args.folder)
    elif args.command == "searches":
        print_milliseconds(args.index)
    else:
        run_stage(args.stage, args.folder, args.model)


if __name__ == "__main__":
    main()
