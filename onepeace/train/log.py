"""Log of a run: progress on stderr, and all numbers as JSON lines in its folder."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onepeace.errors import UserError, need
from onepeace.files.atomic import write_text_atomic
from onepeace.progress import Progress
from onepeace.train.parallel import mean

FILE = "log.jsonl"


class Averages:
    """Means of named numbers and the speed since the last call of `take`.

    Tensors are read in `take` only, so that steps do not wait for the GPU.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the measurement of the speed."""
        self.items = 0
        """Number of items trained on."""
        self._waited, self._since = 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context that measures how long the loop waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def add_step(self, losses: Sequence[Mapping[str, Tensor]], **values: Tensor) -> None:
        """Add the losses of a step's batches and other numbers; names may differ from step to step. "loss" is the sum
        over the batches, as in the gradient; a term of several batches is averaged."""
        numbers = [("loss", torch.stack([found["loss"].detach() for found in losses]).sum())]
        numbers += [(name, value) for found in losses for name, value in found.items() if name != "loss"]
        for name, value in (*numbers, *values.items()):
            self._values.setdefault(name, []).append(value.detach())

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """Means by name, also over processes, and the speed: items per second, share of time spent waiting for data,
        seconds. Both are reset."""
        means: dict[str, float] = {}
        if self._values:
            over_steps = torch.stack([torch.stack(values).double().mean() for values in self._values.values()])
            means = dict(zip(self._values, mean(over_steps).tolist(), strict=True))
        spent = time.perf_counter() - self._since
        speed = {
            "items_per_second": round(self.items / spent, 1),
            "data_wait": round(self._waited / spent, 3),
            "seconds": round(spent, 2),
        }
        self._values.clear()
        self.restart_clock()
        return means, speed


class Log:
    """Writer of ``folder/log.jsonl``.

    Args:
        folder: folder of the run, created if missing.
        step: step from which the run starts. Later lines, from a run that was killed after its last checkpoint, are
            removed, and so is an incomplete last line.
        steps: length of the run, for the progress bar.
        tensorboard: whether to write event files in ``folder/tensorboard`` as well.
    """

    def __init__(self, folder: Path, step: int = 0, steps: int | None = None, tensorboard: bool = False):
        self.path, self._writer = folder / FILE, None
        self._progress = Progress(steps, "step", start=step)
        folder.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            need("tensorboard", "track")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        kept = [line for line in read_log(self.path) if line["step"] <= step] if self.path.exists() and step else []
        write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append and flush a record {"step": ..., **values}, and show the step and the loss."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.path}: the line of step {step} cannot be written ({error.strerror or error}); make room, and "
                "the same command goes on from the last checkpoint"
            ) from error
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        loss = values.get("loss")
        self._progress.update(step - self._progress.count, "" if loss is None else f"loss {loss:.4g}")

    def close(self) -> None:
        """Close the progress bar and the event files."""
        self._progress.close()
        if self._writer:
            self._writer.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Records of a log file, without an incomplete last line."""
    records = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
