"""Log of a run: progress for a person on stderr, and all numbers as JSON lines in its folder."""

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

    Tensors are not read before that, so a GPU never waits.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the speed from now on."""
        self.items = 0
        """Items trained on."""
        self._waited, self._since = 0.0, time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block the loop waits for data."""
        start = time.monotonic()
        yield
        self._waited += time.monotonic() - start

    def add_step(self, losses: Sequence[Mapping[str, Tensor]], **values: Tensor) -> None:
        """One step's losses, by batch, and other numbers; the names may differ from step to step. The gradient is that
        of the sum over the step's batches, so "loss" is their sum; a term that several of them have is averaged."""
        numbers = [("loss", torch.stack([found["loss"].detach() for found in losses]).sum())]
        numbers += [(name, value) for found in losses for name, value in found.items() if name != "loss"]
        for name, value in (*numbers, *values.items()):
            self._values.setdefault(name, []).append(value.detach())

    def take(self) -> tuple[dict[str, float], dict[str, float]]:
        """The mean of each name, over processes too; and items per second, the share of the time spent waiting for
        data, the seconds. Both begin anew."""
        means: dict[str, float] = {}
        if self._values:
            over_steps = torch.stack([torch.stack(values).double().mean() for values in self._values.values()])
            means = dict(zip(self._values, mean(over_steps).tolist(), strict=True))
        spent = time.monotonic() - self._since
        speed = {
            "items_per_second": round(self.items / spent, 1),
            "data_wait": round(self._waited / spent, 3),
            "seconds": round(spent, 2),
        }
        self._values.clear()
        self.restart_clock()
        return means, speed


class Log:
    """Appends to ``folder/log.jsonl``.

    Args:
        folder: the run's; made if missing.
        step: where the run begins. Lines after it, from a run that was cut off later than its last checkpoint, are
            removed, and so is a half-written last line.
        steps: length of the run, for the time that is left.
        tensorboard: whether event files in ``folder/tensorboard`` get the numbers too.
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
        """One record, flushed: {"step": ..., **values}; the step and the loss are shown."""
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
        """End the progress bar and the event files."""
        self._progress.close()
        if self._writer:
            self._writer.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a log file; a last line that was cut off while written is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
