"""Index commands that are killed or run into a full disk: without a model, so that hundreds of them take seconds.

A text of a file stands for its vectors: `vectors_of`.
"""

import multiprocessing
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.indexes import content, unit

from onepeace.errors import UserError
from onepeace.index import Index, Query, database, embed, maintain, record, remove, scan
from onepeace.index.database import Store

DIM = 16
OTHER_DIM = 12
"""Dimension of another model."""
META = {
    "model": "none",
    "model_hash": "0",
    "preprocessing": "0",
    "made_by": "a test",
    "modalities": "text",
    "store": "local",
}
COMMANDS = ("build", "update", "remove", "anew")
State = dict[str, tuple[Any, ...]]
"""Hash, problem, spans and vectors of each file by its path."""


def vectors_of(text: bytes, dim: int = DIM) -> np.ndarray:
    """(1, dim) float32 unit rows, or (3, dim) for a long text."""
    seed = int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
    count = 3 if b"long" in text else 1
    return unit(np.random.default_rng(seed).normal(size=(count, dim)))


def embedded(path: Path, dim: int) -> SimpleNamespace:
    """What the embedder says of a text, as far as building an index asks."""
    text = path.read_bytes()
    windows = None
    if b"bad" not in text:
        vectors = vectors_of(text, dim)
        starts = [5.0 * number for number in range(len(vectors))]
        windows = SimpleNamespace(vectors=vectors, starts=starts, ends=[start + 10 for start in starts])
    return SimpleNamespace(windows=windows, reason="a bad file", is_silent=False)


class Embedder:
    """An embedder, as far as building an index asks for one."""

    modalities = ("text",)
    processors: Mapping[str, Any] = {}

    def __init__(self, embed_dim: int = DIM) -> None:
        self.embed_dim = embed_dim

    def stream(self, values: Iterator[dict[str, Any]], **_: Any) -> Iterator[SimpleNamespace]:
        for value in values:
            yield embedded(value["text"], self.embed_dim)


def identity(model: str | Embedder) -> dict[str, str]:
    """Metadata of an index, by its model."""
    if isinstance(model, str):
        return META
    return {**META, "model": "other", "model_hash": "1"}


def create_store(folder: Path, model: str | Embedder) -> Store:
    dim = DIM if isinstance(model, str) else model.embed_dim
    return Store.create(folder, dim, identity(model))


@contextmanager
def without_model() -> Iterator[None]:
    """The commands of an index embed by `vectors_of`, and write three vectors at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maintain, "create_store", create_store)
        patch.setattr(maintain, "check_model", lambda folder, meta, _: meta)
        patch.setattr(maintain, "keep_calibration", lambda *_: None)
        patch.setattr(maintain, "identity", identity)
        patch.setattr(embed, "load_model", lambda *_: Embedder())
        patch.setattr(scan, "modalities_by_suffix", lambda: {".txt": "text"})
        patch.setattr(record, "BATCH_VECTORS", 3)
        patch.setattr(record, "BATCH_SECONDS", float("inf"))
        yield


def run(command: str, index: Path, files: Path, limit: int | None = None) -> None:
    """`build` or `update` an index of the texts in a folder, `remove` half of them, or build it "anew" with another
    model.

    Args:
        limit: bytes that a file may have; more is refused, as by a full disk.
    """
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with without_model():
        if command == "build":
            maintain.build(index, [files], progress=False)
        elif command == "update":
            maintain.update(index, progress=False)
        elif command == "remove":
            remove(index, sorted(files.glob("*.txt"))[::2])
        else:
            maintain.build(index, model=Embedder(OTHER_DIM), progress=False)


@cache
def start_server() -> None:
    """Start the process that the others are forked from, which has imported this module. It does not get `sys.path`,
    but reads $PYTHONPATH."""
    forkserver.set_forkserver_preload(["support.crash"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()


def in_process(
    command: str, index: Path, files: Path, *, kill_at: int | None = None, limit: int | None = None
) -> tuple[int, int]:
    """Run a command in a process.

    Args:
        kill_at: number of the operation before which the process kills itself, from 1; see `count_operations`.
        limit: bytes that a file may have.

    Returns:
        Its exit code, less than 0 = by a signal; and the number of its operations.
    """
    context = multiprocessing.get_context("forkserver")
    start_server()
    operations = context.RawValue("q")
    process = context.Process(target=run_quietly, args=(command, index, files, limit, kill_at, operations))
    process.start()
    process.join()
    return process.exitcode, operations.value


def count_operations(operations: Any, kill_at: int | None) -> None:
    """Count the statements of SQL and the changes of files and folders from now on, in a process that ends soon.

    Args:
        operations: shared number.
        kill_at: the process is killed before its operation of this number.
    """

    def count(*_: object) -> None:
        operations.value += 1
        if operations.value == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def count_event(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int):
            is_change = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        else:
            is_change = event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "shutil.rmtree")
        if is_change:
            count()

    plain_connect = database.connect

    def connect(*arguments: Any) -> sqlite3.Connection:
        connection = plain_connect(*arguments)
        connection.set_trace_callback(count)
        return connection

    database.connect = connect
    sys.addaudithook(count_event)


ON_A_FULL_DISK = """
import resource, signal, sys
from onepeace.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def on_a_full_disk(limit: int, *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of `onepeace ARGUMENTS` in a process whose files have at most so many bytes."""
    program = [sys.executable, "-c", ON_A_FULL_DISK, *map(str, [limit, *arguments])]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    return done.returncode, done.stderr


def run_quietly(
    command: str, index: Path, files: Path, limit: int | None, kill_at: int | None, operations: Any
) -> None:
    """`run`; a `UserError` is exit code 3, anything else would be 1."""
    count_operations(operations, kill_at)
    try:
        run(command, index, files, limit)
    except UserError:
        sys.exit(3)


def state(index: Path) -> State:
    """All that an index says of its files."""
    files = {}
    for path, file in content(index).items():
        files[path] = (file.fields["hash"], file.fields["problem"], file.fields["spans"], file.vectors.tobytes())
    return files


def answers(index: Path) -> list[Any]:
    """Hits of a search with their numbers; equal ones by path, as their rows may have been written again."""
    with Index.open(index) as opened:
        results = opened.search(
            Query(vector=np.ones(opened.embed_dim)),
            top=50,
            collapse=False,
        )
    hits = [(hit.item.path, round(hit.score, 5), hit.start, hit.end) for hit in results]
    return sorted(hits, key=lambda hit: (-hit[1], hit[0]))


def write_texts(folder: Path, count: int = 24) -> Path:
    """Texts, some of them long, some bad, two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        word = {2: "long", 5: "bad", 7: "long"}.get(number % 12, "short")
        text_number = 8 if number == 9 else number
        (folder / f"{number:03d}.txt").write_text(f"{word} text {text_number}")
    return folder


def change_texts(folder: Path) -> None:
    """One of each thing that `update` takes in."""
    paths = sorted(folder.glob("*.txt"))
    paths[0].write_text("short text that was edited")
    paths[1].rename(folder / "moved.txt")
    paths[2].unlink()
    (folder / "new.txt").write_text("long text that is new")
    (folder / "copy.txt").write_bytes(paths[7].read_bytes())
    os.utime(paths[3], ns=(1, 1))


def prepare(folder: Path, command: str, num_texts: int = 24) -> tuple[Path, Path]:
    """An index and texts that are ready for a command."""
    files = write_texts(folder / "files", num_texts)
    index = folder / "an.index"
    if command != "build":
        run("build", index, files)
    if command == "update":
        change_texts(files)
    return index, files


def finish(command: str, index: Path, files: Path) -> State:
    """The state of the index after the command is given again."""
    run(command, index, files)
    return state(index)
