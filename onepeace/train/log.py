"""Log of a run: progress on stderr, and all numbers as JSON lines in its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onepeace.errors import UserError, need
from onepeace.files.atomic import write_text_atomic
from onepeace.progress import Progress

FILE = "log.jsonl"


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
