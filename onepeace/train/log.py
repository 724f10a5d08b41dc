"""Log of a run: progress for a person on stderr, and all numbers as JSON lines in its folder."""

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onepeace import __version__
from onepeace.config import to_plain
from onepeace.errors import UserError, need
from onepeace.files.atomic import write_text_atomic
from onepeace.progress import Progress
from onepeace.train.parallel import mean, world_size

FILE = "log.jsonl"

Logger = tuple[Callable[[int, dict[str, float]], None], Callable[[], None]]
"""Function that takes a step's numbers, and one that ends the tracker."""


class Averages:
    """Means of named numbers since the last call of `take`. Tensors are not read before that, so a GPU never waits."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """One step's numbers; the names may differ from step to step."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value).detach())

    def add_step(self, losses: Sequence[Mapping[str, Tensor]], **values: Tensor) -> None:
        """One step's losses, by batch, and other numbers. The gradient is that of the sum over the step's batches, so
        "loss" is their sum; a term that several of them have is averaged."""
        self.add({"loss": torch.stack([found["loss"].detach() for found in losses]).sum()})
        for found in losses:
            self.add({name: value for name, value in found.items() if name != "loss"})
        self.add(values)

    def take(self) -> dict[str, float]:
        """The mean of each name, over processes too, and a fresh start."""
        if not self._values:
            return {}
        means = mean(torch.stack([torch.stack(values).double().mean() for values in self._values.values()]))
        names = list(self._values)
        self._values.clear()
        return dict(zip(names, means.tolist(), strict=True))


class Meter:
    """Speed since the last call of `take`."""

    def __init__(self) -> None:
        self.items = 0
        """Items trained on."""
        self._waited, self._since = 0.0, time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block the loop waits for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def take(self) -> dict[str, float]:
        """Items per second, the share of the time spent waiting for data, the seconds; and a fresh start."""
        now = time.monotonic()
        spent, items, waited = now - self._since, self.items, self._waited
        self.items, self._waited, self._since = 0, 0.0, now
        return {
            "items_per_second": round(items / spent, 1),
            "data_wait": round(waited / spent, 3),
            "seconds": round(spent, 2),
        }


class Log:
    """Appends to ``folder/log.jsonl``.

    Args:
        folder: the run's; made if missing.
        step: where the run begins. Lines after it, from a run that was cut off later than its last checkpoint, are
            removed, and so is a half-written last line.
        steps: length of the run, for the time that is left.
        loggers: names in LOGGERS of what gets the numbers too.
        recipe: the run's, for the loggers.
    """

    def __init__(
        self,
        folder: str | Path,
        step: int = 0,
        steps: int | None = None,
        loggers: Sequence[str] = (),
        recipe: Any = None,
    ):
        self.path = Path(folder) / FILE
        self._progress = Progress(steps, "step", start=step)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.loggers = [LOGGERS[name](Path(folder), step, recipe) for name in loggers]
        kept = [line for line in read_log(self.path) if line["step"] <= step] if self.path.exists() and step else []
        write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One record, flushed: {"step": ..., **values}; the step and the loss are shown."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: the line of step {step} cannot be written ({error.strerror or error}); make room, and "
                "the same command goes on from the last checkpoint"
            ) from error
        for track, _ in self.loggers:
            track(step, {name: value for name, value in values.items() if isinstance(value, int | float)})
        loss = values.get("loss")
        self._progress.update(step - self._progress.count, "" if loss is None else f"loss {loss:.4g}")

    def close(self) -> None:
        """Tell the loggers that the run has ended."""
        self._progress.close()
        for _, close in self.loggers:
            close()


def _tensorboard(folder: Path, step: int, recipe: Any) -> Logger:
    """Event files in ``folder/tensorboard``; what an earlier start wrote after ``step`` is not shown."""
    need("tensorboard", "track")
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def track(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return track, writer.close


def _wandb(folder: Path, step: int, recipe: Any) -> Logger:
    """A run of Weights & Biases named as the folder; WANDB_MODE=offline keeps it in ``folder/wandb``."""
    wandb = need("wandb", "track")
    name, kept = folder.resolve().name, folder / "wandb.id"
    if step == 0 or not kept.exists():
        # Not the name: two folders of one name are two runs.
        kept.write_text(uuid.uuid4().hex, encoding="utf-8")
    run = wandb.init(
        project="onepeace",
        name=name,
        id=kept.read_text(encoding="utf-8"),
        dir=str(folder),
        resume="allow",
        reinit="create_new",  # a second run of this process is not the first one
        config=to_plain(recipe),
    )
    return lambda step, values: run.log(values, step=step), run.finish


LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}


def describe_run(folder: Path) -> None:
    """Add to ``folder/environment.jsonl`` how this start of the run was made: versions, machine, code, command."""
    here = Path(__file__).resolve().parent
    git = partial(subprocess.run, cwd=here, capture_output=True, text=True, check=False)
    commit = changed = None
    with contextlib.suppress(OSError):
        # Only of a checkout of this project, not of a repository that an installation happens to lie in.
        if git(["git", "ls-files", "--error-unmatch", __file__]).returncode == 0:
            commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
            changed = bool(git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip())
    about = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "onepeace": __version__,
        "commit": commit,
        "changed": changed,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "processes": world_size(),
        "command": sys.argv,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "environment.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(about) + "\n")


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a log file; a last line that was cut off while written is left out.

    Raises:
        UserError: a line is no record of a step.
    """
    records = []
    # What is no text gives a line that is no JSON.
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f'{path}: line {number} is no record of a step, as {{"step": 20, "loss": 5.3}}')
        records.append(record)
    return records
