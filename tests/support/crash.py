"""Index commands in processes that are stopped in the middle: without a model, so that hundreds of them take seconds.

A text of a file stands for its vectors: `vectors_of`. Started as a program it forks a process for each line of JSON on
its standard input; `Worker` talks to it.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from onepeace.errors import UserError
from onepeace.index import build as building
from onepeace.index import sources
from onepeace.index import write as indexes
from onepeace.index.store import DATABASE, Store
from onepeace.index.verify import repair, verify

DIM = 16
ABOUT = {"model": "none", "model_hash": "0", "preprocessing": "0", "made_by": "a test"}
ABOUT |= {"modalities": "text", "window": "10.0", "hop": "5.0"}
HOW = ("never", "once", "full", "short", "sync", "read only")
"""Ways to fail, as disk.c numbers them."""
State = dict[str, tuple[Any, ...]]
"""By path what an index says of a file: hash, problem, and of each vector start, end and numbers."""


def vectors_of(content: bytes) -> np.ndarray:
    """(1, DIM) float32 unit rows, or (3, DIM) for a long text."""
    seed = int.from_bytes(blake2b(content, digest_size=8).digest(), "little")
    vectors = np.random.default_rng(seed).normal(size=(3 if b"long" in content else 1, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Embedder:
    """As far as the builder asks for one."""

    embed_dim = DIM
    modalities = ("text",)
    processors: Mapping[str, Any] = {}

    def stream(self, values: Iterator[dict[str, Any]], **_: Any) -> Iterator[SimpleNamespace]:
        for value in values:
            content = Path(value["text"]).read_bytes()
            vectors = vectors_of(content)
            starts, ends = [5.0 * i for i in range(len(vectors))], [5.0 * i + 10 for i in range(len(vectors))]
            error = UserError("a bad file") if b"bad" in content else None
            yield SimpleNamespace(
                error=error,
                reason=str(error),
                name=value["text"].name,
                vector=SimpleNamespace(numpy=lambda vectors=vectors: vectors[0]),
                windows=SimpleNamespace(vectors=vectors, starts=starts, ends=ends),
            )


def _open(folder: Path, *_: Any) -> tuple[Store, type[Embedder]]:
    if not (folder / DATABASE).exists():
        return Store.create(folder, DIM, ABOUT), Embedder
    return Store(folder, write=True), Embedder


@contextmanager
def without_model(batch: int = 3) -> Iterator[None]:
    """The commands of an index embed by `vectors_of`, and write this many vectors at once."""
    changes = [(indexes, "_open", _open), (sources, "modalities_by_suffix", lambda: {".txt": "text"})]
    changes += [(indexes, "_provide", lambda *_: None)]
    changes += [(building, "BATCH_VECTORS", batch), (building, "BATCH_SECONDS", float("inf"))]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    for module, name, value in changes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def run(command: str, index: Path, files: Path, batch: int = 3) -> None:
    """`build` or `update` an index of the texts in a folder, or `repair` it; `wait` while others cannot write to it."""
    with without_model(batch):
        if command == "build":
            indexes.build(index, [str(files)], progress=False)
        elif command == "update":
            indexes.update(index, progress=False)
        else:
            with indexes.writing(index):
                if command == "wait":
                    _say({"mark": {}})
                    signal.pause()
                repair(index)


def state(index: Path) -> State:
    """All that an index says."""
    with closing(Store(index)) as store:
        return state_of(store)


def state_of(store: Store) -> State:
    rows, found = store.rows(), {}
    for item in store.items():
        own = np.flatnonzero(rows.file == item.id)
        vectors = [(float(rows.start[i]), float(rows.end[i]), rows.vectors[rows.row[i]].tobytes().hex()) for i in own]
        found[item.path] = (item.hash and item.hash.hex(), item.problem, str(vectors))
    assert len(rows.row) == sum(one[2].count("(") for one in found.values())
    return found


def summary(hashes: Mapping[str, str]) -> dict[str, str]:
    """The hashes of files by path, so short that a pipe takes them at once: a process may be killed meanwhile."""
    return {Path(path).name: hash_[:8] for path, hash_ in hashes.items()}


def truth(files: Path) -> State:
    """What an index of a folder is to say."""
    found = {}
    for path in sorted(files.rglob("*.txt")):
        content = path.read_bytes()
        vectors = vectors_of(content)
        whole = len(vectors) == 1
        rows = [
            (*((float("nan"),) * 2 if whole else (5.0 * i, 5.0 * i + 10)), row.tobytes().hex())
            for i, row in enumerate(vectors)
        ]
        hash_ = blake2b(content, digest_size=16).hexdigest()
        found[str(path)] = (hash_, "a bad file", "[]") if b"bad" in content else (hash_, None, str(rows))
    return found


def check(index: Path) -> None:
    findings = verify(index)
    assert findings.ok, findings.lines()


def write_texts(folder: Path, count: int = 12) -> Path:
    """Texts, some of them long, one bad, two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        kind = {2: "long", 5: "bad", 7: "long"}.get(i % 12, "short")
        (folder / f"{i:03d}.txt").write_text(f"{kind} text {i if i != 9 else 8}")
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


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Of a signal, less than 0."""
    said: str
    """The error; empty if there was none."""
    marks: list[dict[str, str]]
    """What `summary` says after each transaction."""
    writes: int
    """How often it wrote."""
    syncs: int


class Worker:
    """Runs commands in processes of their own, one at a time.

    Args:
        shim: the library that `disk.compile_shim` made, if writes are to be recorded or to fail.
    """

    def __init__(self, shim: Path | None = None) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.crash"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.has_shim = shim is not None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def hear(self) -> str:
        """The next line of a command that was begun."""
        assert self._process.stdout
        return self._process.stdout.readline()

    def start(self, command: str, index: Path, files: Path, **options: Any) -> int:
        """Begin a command; gives the number of its process. Options are those of `_serve`."""
        assert self._process.stdin
        job = {"command": command, "index": str(index), "files": str(files), **options}
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return int(self.hear())

    def wait(self) -> Ended:
        """Until the command that was begun has ended."""
        lines: list[Any] = [json.loads(self.hear())]
        while "code" not in lines[-1]:
            lines.append(json.loads(self.hear()))
        ends = {key: value for line in lines for key, value in line.items() if key != "mark"}
        marks = [line["mark"] for line in lines if "mark" in line]
        return Ended(ends["code"], ends.get("said", ""), marks, ends.get("writes", 0), ends.get("syncs", 0))

    def run(self, command: str, index: Path, files: Path, **options: Any) -> Ended:
        self.start(command, index, files, **options)
        return self.wait()


def _serve(
    command: str,
    index: str,
    files: str,
    batch: int = 3,
    log: str | None = None,
    how: str = "never",
    at: int = 0,
    dies: bool = False,
) -> None:
    """The command; all that is to be known of it goes to standard output.

    Args:
        batch: vectors that are written at once.
        log: where its writes are recorded.
        how: they fail, one of HOW.
        at: which of them fails.
        dies: it is killed when all is in the index, before the index is closed.
    """
    shim = ctypes.CDLL(None)
    if log or how != "never":
        shim.disk_watch(os.fsencode(Path(index).parent), log and os.fsencode(log), HOW.index(how), ctypes.c_long(at))
    transaction, sql = Store.transaction, "SELECT path, hash FROM files"

    @contextmanager
    def marked(store: Store) -> Iterator[Any]:
        with transaction(store) as connection:
            yield connection
        mark = summary({os.fsdecode(path): hash_.hex() for path, hash_ in connection.execute(sql)})
        _say({"mark": mark})
        if log:
            shim.disk_mark(json.dumps(mark).encode())

    Store.transaction = marked  # type: ignore[method-assign]
    if dies:
        Store.backup = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment]
    said = ""
    try:
        if command == "read":
            _say({"mark": summary({path: one[0] for path, one in state(Path(index)).items()})})
        else:
            run(command, Path(index), Path(files), batch)
    except UserError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    if log or how != "never":
        _say({"writes": shim.disk_writes(), "syncs": shim.disk_syncs()})
    _say({"said": said})
    os._exit(1 if said else 0)


def _say(something: Mapping[str, Any]) -> None:
    os.write(1, f"{json.dumps(something)}\n".encode())


def serve(lines: Iterator[str]) -> None:
    for line in lines:
        ready, go = os.pipe()
        number = os.fork()
        if not number:
            os.close(go)
            os.read(ready, 1)
            _serve(**json.loads(line))
        os.close(ready)
        os.write(1, f"{number}\n".encode())
        os.close(go)
        _, status = os.waitpid(number, 0)
        _say({"code": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    serve(iter(sys.stdin.readline, ""))
