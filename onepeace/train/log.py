"""What a run says: one line per interval for a person on stderr, the same numbers as JSON lines in its folder."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FILE = "log.jsonl"
LEADING = ("loss", "lr", "items_per_second")
"""Fields that come first in the line for a person; named terms follow."""


class Averages:
    """Means of named numbers since the last call of `take`. Tensors are not read before that, so a GPU never waits."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """One step's numbers; the names may differ from step to step."""
        for name, value in values.items():
            self._values.setdefault(name, []).append(torch.as_tensor(value).detach())

    def take(self) -> dict[str, float]:
        """The mean of each name, and a fresh start."""
        means = {name: torch.stack(values).double().mean().item() for name, values in self._values.items()}
        self._values.clear()
        return means


class Log:
    """Appends to ``folder/log.jsonl``.

    Args:
        folder: the run's; made if missing.
        step: where the run begins. Lines after it, from a run that was cut off later than its last checkpoint, are
            removed, and so is a half-written last line.
        steps: length of the run, for the line's "step 400/2000".
    """

    def __init__(self, folder: str | Path, step: int = 0, steps: int | None = None):
        self.path = Path(folder) / FILE
        self.steps = steps
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(self.path) if line["step"] <= step] if self.path.exists() and step else []
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """One record, flushed: {"step": ..., **values}. Numbers are printed, nested values only stored."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        print(human(step, self.steps, values), file=sys.stderr, flush=True)


def human(step: int, steps: int | None, values: Mapping[str, Any]) -> str:
    """ "step 400/2000  loss 5.31  lr 6.7e-05  items_per_second 44.1  contrastive 2.9" """
    names = [name for name in LEADING if name in values] + [name for name in values if name not in LEADING]
    parts = [f"{name} {_short(values[name])}" for name in names if isinstance(values[name], int | float | str)]
    return "  ".join([f"step {step}/{steps}" if steps else f"step {step}", *parts])


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a log file; a last line that was cut off while written is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
