"""Log of a run: means of the numbers of its steps and its speed, on stderr and as JSON lines in its folder.

Services and file formats that show the numbers as well are `LOGGERS`; ``LOGGERS["mine"] = Mine`` adds one for
``run.loggers``. Nothing is read back from them, and a run is resumed with others or without.
"""

import json
import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from onepeace.config import to_plain
from onepeace.errors import UserError, need, one_line
from onepeace.files.atomic import write_text_atomic
from onepeace.progress import Progress
from onepeace.train.parallel import mean, world_size
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"


class Logger(Protocol):
    """A service or a file format that shows numbers by step.

    Args:
        folder: folder of the run.
        step: step from which the run resumes; 0 for a new one.
        recipe: the resolved recipe, as plain values.
    """

    def __init__(self, folder: Path, step: int, recipe: Mapping[str, Any]) -> None: ...

    @classmethod
    def check(cls) -> None:
        """UserError if a package is missing; called before anything is computed."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a step."""

    def close(self) -> None:
        """Write what is still in memory; the run is over or stops."""


class TensorBoard:
    """Event files in the folder ``tensorboard`` of the run."""

    def __init__(self, folder: Path, step: int, recipe: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    @classmethod
    def check(cls) -> None:
        need("tensorboard", "track")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases; project and mode are set by its environment variables (WANDB_PROJECT, WANDB_MODE).

    A resumed run continues in the same run, which keeps the first of two values for a step.
    """

    def __init__(self, folder: Path, step: int, recipe: Mapping[str, Any]) -> None:
        wandb = need("wandb", "wandb")
        path = folder / "wandb_id"
        if not step or not path.exists():
            path.write_text(uuid.uuid4().hex)
        self.run = wandb.init(
            id=path.read_text(),
            name=folder.name,
            dir=str(folder),
            config=dict(recipe),
            resume="allow",
        )

    @classmethod
    def check(cls) -> None:
        need("wandb", "wandb")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of MLflow; server and experiment are set by its environment variables (MLFLOW_TRACKING_URI,
    MLFLOW_EXPERIMENT_NAME). A resumed run continues in the same run."""

    def __init__(self, folder: Path, step: int, recipe: Mapping[str, Any]) -> None:
        self.mlflow = need("mlflow", "mlflow")
        path = folder / "mlflow_id"
        if step and path.exists():
            self.mlflow.start_run(run_id=path.read_text())
            return
        run = self.mlflow.start_run(run_name=folder.name)
        path.write_text(run.info.run_id)
        self.mlflow.log_dict(dict(recipe), "recipe.yaml")

    @classmethod
    def check(cls) -> None:
        need("mlflow", "mlflow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # The plus of "contrastive/text+image" is not among the letters that MLflow allows.
        named = {re.sub(r"[^\w\-. :/]", "-", name): value for name, value in values.items()}
        self.mlflow.log_metrics(named, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


LOGGERS: dict[str, type[Logger]] = {
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
    "wandb": WandB,
}


class Log:
    """Writer of ``folder/log.jsonl``.

    Args:
        folder: folder of the run, created if missing.
        step: step from which the run starts. Later lines, from a run that was killed after its last checkpoint, are
            removed, and so is an incomplete last line.
        steps: length of the run, for the progress bar.
        loggers: where the numbers are written as well.
    """

    def __init__(self, folder: Path, step: int = 0, steps: int | None = None, loggers: Sequence[Logger] = ()):
        self.path = folder / LOG_FILE
        self._loggers = loggers
        self._progress = Progress(steps, "step", start=step)
        folder.mkdir(parents=True, exist_ok=True)
        kept = []
        if step and self.path.exists():
            kept = [line for line in read_log(self.path) if line["step"] <= step]
        write_text_atomic(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append and flush a record {"step": ..., **values}, and show the step and the loss."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(
                f"the line of step {step} cannot be written ({error.strerror or error}); make room, then run "
                "the same command again to resume from the last checkpoint",
                where=self.path,
            ) from error
        for logger in self._loggers:
            try:
                logger.log(step, values)
            except Exception as error:  # a service that is not reachable does not end a run
                log.warning("step %d is missing in %s: %s", step, type(logger).__name__, one_line(error))
        loss = values.get("loss")
        self._progress.update(step - self._progress.count, "" if loss is None else f"loss {loss:.4g}")

    def close(self) -> None:
        """Close the progress bar and the loggers."""
        self._progress.close()
        for logger in self._loggers:
            logger.close()


def open_log(recipe: Recipe, step: int) -> Log:
    """The log of a run that starts after a step, with the loggers of its recipe.

    Raises:
        UserError: a logger cannot start, as without a network or an account.
    """
    folder = Path(recipe.run.out)
    folder.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = []
    for name in recipe.run.loggers:
        try:
            loggers.append(LOGGERS[name](folder, step, to_plain(recipe)))
        except Exception as error:  # services raise errors of their own types
            raise UserError(
                f"run.loggers: {name} cannot start ({one_line(error):.200}); mend it, or leave it out"
            ) from error
    return Log(folder, step, recipe.schedule.steps, loggers)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Records of a log file, without an incomplete last line."""
    records = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


class Averages:
    """Means of named numbers and the speed since the last call of `take`.

    Tensors are read in `take` only, so that steps do not wait for the GPU.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, Tensor]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the measurement of the speed."""
        self.items = 0
        """Number of items trained on."""
        self.tokens: Counter[str] = Counter()
        """Number of tokens of this process by modality, without padding."""
        self._waited = 0.0
        self._since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context that measures how long the loop waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def add_step(self, losses: Sequence[Mapping[str, Tensor]], **values: Tensor | float) -> None:
        """Add the losses of a step's batches and other numbers; names may differ from step to step. "loss" is the sum
        over the batches, as in the gradient; a term of several batches is averaged."""
        by_name: dict[str, list[Tensor]] = {}
        for batch_losses in losses:
            for name, value in batch_losses.items():
                by_name.setdefault(name, []).append(value.detach())
        numbers = {"loss": torch.stack(by_name.pop("loss")).sum()}
        for name, tensors in by_name.items():
            numbers[name] = torch.stack(tensors).mean()
        for name, number in values.items():
            numbers[name] = torch.as_tensor(number, dtype=torch.float32)
        self._steps.append(numbers)

    def take(self, left_out: Sequence[bool] = ()) -> tuple[dict[str, float], dict[str, float]]:
        """Means by name, also over processes, and the speed: items and tokens per second, share of time spent waiting
        for data, seconds. Both are reset.

        Args:
            left_out: for each step, whether it does not count.
        """
        values: dict[str, list[Tensor]] = {}
        for number, step in enumerate(self._steps):
            if not (left_out and left_out[number]):
                for name, value in step.items():
                    values.setdefault(name, []).append(value)
        means = {}
        if values:
            over_steps = [torch.stack(tensors).double().mean().cpu() for tensors in values.values()]
            over_processes = mean(torch.stack(over_steps))
            means = dict(zip(values, over_processes.tolist(), strict=True))
        spent = time.perf_counter() - self._since
        speed = {
            "items_per_second": round(self.items / spent, 1),
            "data_wait": round(self._waited / spent, 3),
            "seconds": round(spent, 2),
        }
        for modality, count in self.tokens.items():
            speed[f"tokens_per_second/{modality}"] = round(count * world_size() / spent, 1)
        self._steps.clear()
        self.restart_clock()
        return means, speed
