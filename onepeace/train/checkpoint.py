"""Checkpoints: the state of a run in one safetensors file, written so that a crash never leaves a run without one.

Tensors (model, optimizer, average) are the file's tensors, everything else is JSON in its header; nothing is pickled. A
file gets its name when it is complete on the disk, and safetensors refuses one that is truncated later, so `newest` can
fall back to the previous one. No random state is saved: the loop seeds each step by its number.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic

log = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d+)\.safetensors")


@dataclass
class Checkpoint:
    """State of a run after ``step`` updates."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    """A state_dict of torch.optim."""
    ema: dict[str, Tensor]
    """Averaged weights; empty if the run has none."""
    recipe: str
    """The resolved recipe as YAML."""
    extra: dict[str, Any]
    """Further state of the loop, as JSON."""


def save(folder: Path, state: Checkpoint) -> Path:
    """Write ``folder/step-N.safetensors``; the folder is created if missing.

    Raises:
        OSError: the disk is full or not writable; older files are untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": tensor for name, tensor in state.model.items()}
    tensors |= {f"ema/{name}": tensor for name, tensor in state.ema.items()}
    for index, values in state.optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in values.items()}
    header: dict[str, Any] = {"step": state.step, "recipe": state.recipe, "extra": state.extra}
    header["optimizer_groups"] = state.optimizer["param_groups"]
    metadata = {"format": "1", "onepeace": json.dumps(header)}
    for unfinished in folder.glob(".step-*.tmp"):  # left behind by a killed process
        unfinished.unlink()
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path = folder / f"step-{state.step:08d}.safetensors"
    try:
        with write_atomic(path) as temporary:
            save_file(plain, temporary, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint file; UserError if it is truncated or not a checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["onepeace"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        fields = {name: header[name] for name in ("step", "recipe", "extra")}
        groups = header["optimizer_groups"]
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a complete checkpoint ({error})") from error
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in _below(tensors, "optimizer/").items():
        index, _, field = name.partition("/")
        state.setdefault(int(index), {})[field] = tensor
    return Checkpoint(
        model=_below(tensors, "model/"),
        optimizer={"state": state, "param_groups": groups},
        ema=_below(tensors, "ema/"),
        **fields,
    )


def newest(folder: Path) -> Checkpoint | None:
    """The last readable checkpoint of a run, with a warning for each unreadable one; None if there is none."""
    for path in reversed(files(folder)):
        try:
            return load(path)
        except UserError as error:
            log.warning("%s; going on from the one before", error)
    return None


def files(folder: str | Path) -> list[Path]:
    """The checkpoint files of a run, oldest first."""
    return sorted((path for path in Path(folder).glob("*") if NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The number in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def prune(written: Path, keep: int) -> None:
    """Remove all but ``keep`` checkpoints: the one just written and the newest before it.

    Checkpoints of later steps are removed too: they were unreadable, or the run would have resumed from them.
    """
    there = files(written.parent)
    good = [path for path in there if step_of(path) <= step_of(written)]
    for path in there:
        if path not in good[-keep:]:
            path.unlink()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
