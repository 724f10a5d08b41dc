"""Where the numbers of a run are written beside its log.jsonl; ``LOGGERS["mine"] = Mine`` adds one for ``run.loggers``.

They only show the numbers: nothing is read back from them, and a run is resumed with others or without.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from onepeace.errors import UserError, need, one_line


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


def make_loggers(names: Sequence[str], folder: Path, step: int, recipe: Mapping[str, Any]) -> list[Logger]:
    """Loggers by name; see `Logger` for the arguments.

    Raises:
        UserError: a logger cannot start, as without a network or an account.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = []
    for name in names:
        try:
            loggers.append(LOGGERS[name](folder, step, recipe))
        except Exception as error:  # services raise errors of their own types
            raise UserError(
                f"run.loggers: {name} cannot start ({one_line(error):.200}); mend it, or leave it out"
            ) from error
    return loggers
