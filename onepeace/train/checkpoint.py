"""All of a run's state in one safetensors file, written so that a crash at any moment leaves a usable one behind.

Tensors (model, optimizer, average) are the file's tensors, everything else is JSON in its header; nothing is pickled. A
file gets its name only when it is complete on the disk, and safetensors refuses one that was cut off later, so `newest`
can fall back on the one before. No generator is saved: the loop seeds each step by its number.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from onepeace.errors import UserError
from onepeace.files.atomic import write_atomic, write_text_atomic

log = logging.getLogger(__name__)

NAME = re.compile(r"step-(\d+)(\.safetensors)?")
UNFINISHED = "*step-*.tmp"
"""Files and folders that a killed process left behind."""
ABOUT = "state.json"
"""File of all that is no tensor, in a checkpoint in shares (state.py)."""
SCORES = "scores.json"
"""{step: score}: beside the checkpoints, which are written before they are measured."""
FORMAT = "1"
"""Raised when what is in a checkpoint changes, so that an older version does not misread it."""


class FormatError(UserError):
    """A checkpoint of another format: there is nothing wrong with it, so no older one takes its place."""


@dataclass
class Checkpoint:
    """State that was saved after ``step`` updates."""

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    """A state_dict of torch.optim."""
    ema: dict[str, Tensor]
    """Averaged weights; empty if the run has none."""
    recipe: str
    """The resolved recipe, YAML."""
    extra: dict[str, Any]
    """Whatever else the loop wanted to keep, as JSON allows."""
    score: float | None
    """Score of its validation, larger is better; None if there was none, or it broke off."""


def save(
    folder: str | Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    recipe: str,
    ema: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/step-N.safetensors``.

    Args:
        folder: the run's; made if missing.
        step: number of updates done.
        model, optimizer, ema: state dicts.
        recipe, extra: see `Checkpoint`.

    Raises:
        OSError: the disk is full or not writable; the files from before are untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model/{name}": tensor for name, tensor in model.items()}
    tensors |= {f"ema/{name}": tensor for name, tensor in (ema or {}).items()}
    scalars: dict[str, dict[str, Any]] = {}
    for index, state in optimizer["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    header = {
        "step": step,
        "recipe": recipe,
        "extra": dict(extra or {}),
        "optimizer_groups": optimizer["param_groups"],
        "optimizer_scalars": scalars,
    }
    metadata = {"format": FORMAT, "onepeace": json.dumps(header)}

    path = folder / f"step-{step:08d}.safetensors"
    remove(*folder.glob(UNFINISHED))
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with write_atomic(path) as temporary:
            save_file(plain, temporary, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    return path


def load(path: str | Path) -> Checkpoint:
    """Read one checkpoint file; a `UserError` names a file that is cut off or something else."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if path.is_dir():
        return _load_about(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            header = json.loads(metadata["onepeace"])
            _check_format(path, metadata["format"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        fields = {name: header[name] for name in ("step", "recipe", "extra")}
        groups, scalars = header["optimizer_groups"], header["optimizer_scalars"]
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a complete checkpoint ({error})") from error
    state: dict[int, dict[str, Any]] = {int(i): dict(values) for i, values in scalars.items()}
    for name, tensor in _below(tensors, "optimizer/").items():
        index, _, field = name.partition("/")
        state.setdefault(int(index), {})[field] = tensor
    return Checkpoint(
        path=path,
        model=_below(tensors, "model/"),
        optimizer={"state": state, "param_groups": groups},
        ema=_below(tensors, "ema/"),
        score=_scores(path.parent).get(header["step"]),
        **fields,
    )


def _check_format(path: Path, found: str) -> None:
    if found != FORMAT:
        raise FormatError(
            f"{path}: a checkpoint of format {found}, this version reads {FORMAT}; go on with the version that wrote "
            "it, or give run.out another folder"
        )


def _load_about(path: Path) -> Checkpoint:
    """A checkpoint in shares without the tensors, which each process reads for itself; they are all there."""
    from safetensors import SafetensorError, safe_open

    shares = sorted(path.glob("*.safetensors"))
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        _check_format(path, about.get("format", FORMAT))  # older ones do not say
        fields = {name: about[name] for name in ("step", "recipe", "extra")}
        for share in shares:
            with safe_open(share, framework="pt"):
                pass  # it compares the size with the header
        if len(shares) != about["shares"]:
            raise ValueError(f"{len(shares)} of {about['shares']} shares")
    except (SafetensorError, OSError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a complete checkpoint ({error})") from error
    score = _scores(path.parent).get(about["step"])
    return Checkpoint(path=path, model={}, optimizer={}, ema={}, score=score, **fields)


def newest(folder: str | Path) -> Checkpoint | None:
    """The last checkpoint of a run that can be read, with a warning for each that cannot; None if there is none.

    Raises:
        FormatError: it is of another format. To go on from an older one would lose what was trained since.
    """
    for path in reversed(files(folder)):
        try:
            return load(path)
        except FormatError:
            raise
        except UserError as error:
            log.warning("%s; going on from the one before", error)
    return None


def files(folder: str | Path) -> list[Path]:
    """The checkpoint files of a run, oldest first."""
    return sorted((path for path in Path(folder).glob("*") if NAME.fullmatch(path.name)), key=step_of)


def step_of(path: Path) -> int:
    """The number in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def record(folder: Path, step: int, score: float) -> None:
    """Keep the score of the checkpoint of ``step``, which is there already: to measure takes long and may fail."""
    _write_scores(folder, {**_scores(folder), step: score})


def _scores(folder: Path) -> dict[int, float]:
    try:
        return {int(step): score for step, score in json.loads((folder / SCORES).read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (OSError, AttributeError, ValueError) as error:
        log.warning("%s: cannot be read (%s): no checkpoint has a score", folder / SCORES, error)
        return {}


def _write_scores(folder: Path, scores: Mapping[int, float]) -> None:
    try:
        write_text_atomic(folder / SCORES, json.dumps(scores))
    except OSError as error:
        raise UserError(f"{folder / SCORES}: cannot be written ({error})") from error


def prune(written: Path, keep: int) -> None:
    """Remove all but ``keep`` checkpoints, the one just written and the newest before it, and that of the best score.

    Others of its step or a later one could not be read when the run went on: else it had gone on from there. They must
    not take the place of one that can be.
    """
    folder, there, step = written.parent, files(written.parent), step_of(written)
    good = [*(path for path in there if step_of(path) < step), written]
    known = _scores(folder)
    scores = {at: score for at, score in known.items() if at < step}
    scored = [path for path in good if step_of(path) in scores]
    best = max(scored, key=lambda path: scores[step_of(path)], default=written)
    remove(*(path for path in there if path not in (*good[-keep:], best)))
    if scores != known:
        _write_scores(folder, scores)


def remove(*paths: Path) -> None:
    """Files, and folders with what is in them."""
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
