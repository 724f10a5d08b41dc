"""Log of a run: progress on stderr, and all numbers as JSON lines in its folder."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onepeace.config import to_plain
from onepeace.errors import UserError, one_line
from onepeace.files.atomic import write_text_atomic
from onepeace.progress import Progress
from onepeace.train.loggers import Logger, make_loggers
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

LOG_FILE = "log.jsonl"


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
    """The log of a run that starts after a step, with the loggers of its recipe."""
    folder = Path(recipe.run.out)
    loggers = make_loggers(recipe.run.loggers, folder, step, to_plain(recipe))
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
