"""Checkpoints of a run by torch.distributed.checkpoint: each process writes its part while the training goes on.

`Checkpoints.save` copies the state to the CPU and returns; a thread writes the files. A run resumes with any number of
processes, replicated or sharded. No random state is saved: the loop seeds each step by its number.

A checkpoint is a folder ``step-00001000`` with safetensors files and checkpoint.json, its header with a digest of each
file. It is written under a hidden name and renamed when it is complete on the disk, so that a crash leaves the
checkpoints before it. Nothing is pickled.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.data.reader import Cursor
from onepeace.errors import UserError
from onepeace.files.atomic import sync
from onepeace.train import parallel

log = logging.getLogger(__name__)

SHARE = 0.02
"""Share of a run's time that it may stand still for checkpoints by time."""
TIMEOUT = timedelta(hours=1)
"""Longest time that the slowest process writes after the fastest."""
HEADER = "checkpoint.json"
NAME = re.compile(r"step-(\d+)")
DIGEST = "blake2b"


@dataclass(frozen=True)
class Header:
    """What a checkpoint holds beside tensors."""

    step: int
    """Number of updates done."""
    recipe: str
    """The resolved recipe as YAML."""
    cursors: Mapping[str, Cursor]
    """Position in the data, by name of sources."""
    optimizer: Mapping[str, Any]
    """Numbers of the optimizer (`State.numbers`)."""
    digests: Mapping[str, str]
    """blake2b of each file with tensors, by file name."""


def folder_of(out: Path, step: int) -> Path:
    """Folder of the checkpoint of a step."""
    return out / f"step-{step:08d}"


def unfinished(folder: Path) -> Path:
    """Folder in which a checkpoint is written, or from which it is removed."""
    return folder.with_name(f".{folder.name}.tmp")


def step_of(folder: Path) -> int:
    """The number in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def folders(out: str | Path) -> list[Path]:
    """The checkpoints of a run, whole or damaged, oldest first."""
    checkpoints = [path for path in Path(out).glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(checkpoints, key=step_of)


def write_header(folder: Path, header: Header) -> None:
    """Write checkpoint.json, with a digest of itself."""
    content = asdict(header)
    text = json.dumps({DIGEST: _digest_of_content(content), **content}, indent=1)
    path = folder / HEADER
    path.write_text(text, encoding="utf-8")
    sync(path)


def read_header(folder: Path) -> Header:
    """Read checkpoint.json; UserError if it is missing, damaged or that of another step."""
    path = folder / HEADER
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop(DIGEST)
        header = Header(**content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"not a complete checkpoint ({HEADER}: {error})", where=folder) from error
    if digest != _digest_of_content(content):
        raise UserError(f"not a complete checkpoint ({HEADER} was changed)", where=folder)
    if header.step != step_of(folder):
        raise UserError(f"is the checkpoint of step {header.step}, renamed", where=folder)
    return header


def _digest_of_content(content: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_files(folder: Path, header: Header, names: Iterable[str]) -> None:
    """Compare files with their digests; UserError if one is missing or changed, or belongs to another checkpoint."""
    from onepeace.train.checkpoint_storage import digest_of

    for path in sorted(folder.glob("*.safetensors")):
        if path.name not in header.digests:
            raise UserError("does not belong to this checkpoint", where=path)
    for name in names:
        path = folder / name
        try:
            is_same = digest_of(path) == header.digests[name]
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror or error})", where=path) from error
        if not is_same:
            raise UserError("damaged, its digest differs", where=path)


def publish(folder: Path) -> None:
    """Give the complete content of ``unfinished(folder)`` its name, on the disk."""
    written = unfinished(folder)
    sync(written)
    if folder.exists():  # it was damaged, or the run would have gone on from it
        shutil.rmtree(folder)
    os.replace(written, folder)
    sync(folder.parent)


def remove(folder: Path) -> None:
    """Remove a checkpoint; if the process is killed during that, what is left is not a checkpoint."""
    hidden = unfinished(folder)
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def prune(written: Path, keep: int) -> None:
    """Remove all but ``keep`` checkpoints: the one just written and the newest before it.

    Checkpoints of later steps are removed too: they were damaged, or the run would have resumed from them.
    """
    present = folders(written.parent)
    not_later = [folder for folder in present if step_of(folder) <= step_of(written)]
    for folder in present:
        if folder not in not_later[-keep:]:
            remove(folder)


def remove_unfinished(out: Path) -> None:
    """Remove what a killed run left of a checkpoint that it was writing."""
    for folder in out.glob(".step-*.tmp"):
        shutil.rmtree(folder)


@dataclass(frozen=True)
class State:
    """What a run changes in a step."""

    objective: nn.Module
    """The model and the terms."""
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor]
    """Averaged weights by parameter name; empty if the run has none."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, not copied: ``model.NAME``, ``ema.NAME`` and ``optimizer.NAME.FIELD`` by name of the parameter,
        as ``optimizer.model.head.weight.exp_avg``."""
        tensors = {f"model.{name}": tensor for name, tensor in self.objective.state_dict().items()}
        for name, tensor in self.average.items():
            tensors[f"ema.{name}"] = tensor
        for name, values in self._optimizer_state().items():
            for field, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{field}"] = value
        return tensors

    def numbers(self) -> dict[str, Any]:
        """Numbers of the optimizer that are not tensors: of its groups, and of each parameter with a state, by name."""
        return {
            "groups": [_numbers_in_group(group) for group in self.optimizer.param_groups],
            "state": {name: _numbers_in(values) for name, values in self._optimizer_state().items()},
        }

    def set_numbers(self, numbers: Mapping[str, Any]) -> None:
        """Set what `numbers` returned; parameters without a state get one, of the right shapes and any values."""
        names = numbers["state"].keys()
        if names != self._optimizer_state().keys():
            for name, parameter in self.objective.named_parameters():
                parameter.grad = torch.zeros_like(parameter) if name in names else None
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        for group, saved in zip(self.optimizer.param_groups, numbers["groups"], strict=True):
            _set_numbers(group, saved)
        for name, values in self._optimizer_state().items():
            _set_numbers(values, numbers["state"][name])

    def _optimizer_state(self) -> dict[str, dict[str, Any]]:
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.objective.named_parameters()}
        return {names[parameter]: values for parameter, values in self.optimizer.state.items()}


def _numbers_in(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if type(value) in (int, float)}


def _numbers_in_group(group: Mapping[str, Any]) -> dict[str, float]:
    """Numbers in a group of an optimizer, where some are tensors (timm's Lamb counts its steps in one)."""
    scalars = {name: value.item() for name, value in group.items() if isinstance(value, Tensor)}
    return {**_numbers_in(group), **scalars}


def _set_numbers(values: dict[str, Any], numbers: Mapping[str, float]) -> None:
    for name, number in numbers.items():
        value = values.get(name)
        if isinstance(value, Tensor):
            value.fill_(number)
        else:
            values[name] = number


def newest(out: Path) -> Path | None:
    """The last whole checkpoint of a run, with a warning for each damaged one; None if there is none.

    All processes must call it. Each compares the digests of a part of the files, and all get the same answer.
    """
    steps = parallel.gather_objects([step_of(folder) for folder in folders(out)])[0]
    for step in reversed(steps):
        folder = folder_of(out, step)
        problems = [problem for problem in parallel.gather_objects(_problem(folder)) if problem]
        if not problems:
            return folder
        if parallel.rank() == 0:
            log.warning("%s; resuming from the one before", problems[0])
    return None


def _problem(folder: Path) -> str:
    """What is wrong with a checkpoint, as far as this process looks at it; "" if nothing."""
    try:
        header = read_header(folder)
        names = sorted(header.digests)
        check_files(folder, header, names[parallel.rank() :: parallel.world_size()])
    except UserError as error:
        return str(error)
    return ""


class Checkpoints:
    """Saves the state of a run and restores it.

    Args:
        out: folder of the run.
        state: what is saved.
        keep: number of checkpoints to keep.
    """

    def __init__(self, out: Path, state: State, keep: int) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        self.out = out
        self.state = state
        self.keep = keep
        on_cuda = any(tensor.is_cuda for tensor in state.objective.state_dict().values())
        # Its buffers are kept: memory is slower to get from the system than to fill.
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_cuda,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_cuda,
            )
        )
        # The thread must not exchange messages in the group of the training.
        self._group = parallel.new_cpu_group(TIMEOUT)
        self._writing: Future[Any] | None = None
        self._step = 0
        self._seconds = 0.0
        self._saved_at = time.monotonic()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Complete the checkpoint in flight; if the block failed, a second error is only logged."""
        try:
            self.wait()
        except UserError as error:
            if error_type is None:
                raise
            log.warning("%s", error)

    def is_due(self, minutes: float) -> bool:
        """Whether ``minutes`` have passed since the last checkpoint, and so long that its pause was at most `SHARE` of
        the time. False while one is being written, if ``minutes`` is 0, and in all processes but the first."""
        if minutes == 0 or parallel.rank() > 0 or self.is_writing():
            return False
        return time.monotonic() - self._saved_at >= max(60 * minutes, self._seconds / SHARE)

    def save(self, step: int, recipe: str, cursors: Mapping[str, Cursor]) -> None:
        """Begin to write the checkpoint of a step; all processes must call it. The state may change afterwards.

        A checkpoint that is still being written is completed first.

        Args:
            step: number of updates done.
            recipe: the resolved recipe as YAML.
            cursors: position in the data of this process.

        Raises:
            UserError: the one before could not be written.
        """
        import torch.distributed.checkpoint as dcp

        from onepeace.train.checkpoint_storage import Planner, Writer

        started = time.monotonic()
        self.wait()
        merged: dict[str, Cursor] = {}
        for part in parallel.gather_objects(dict(cursors)):
            merged.update(part)
        header = Header(
            step=step,
            recipe=recipe,
            cursors=merged,
            optimizer=self.state.numbers(),
            digests={},
        )
        _silence_single_process()
        self._step = step
        self._writing = dcp.async_save(  # type: ignore[assignment]
            self.state.tensors(),
            storage_writer=Writer(unfinished(folder_of(self.out, step)), partial(self._complete, header)),
            planner=Planner(),
            process_group=self._group,
            async_stager=self._stager,
            no_dist=self._group is None,
        )
        self._saved_at = time.monotonic()
        self._seconds = self._saved_at - started

    def _complete(self, header: Header, digests: Mapping[str, str]) -> None:
        """Complete a checkpoint whose files are on the disk."""
        folder = folder_of(self.out, header.step)
        write_header(unfinished(folder), replace(header, digests=digests))
        publish(folder)
        prune(folder, self.keep)

    def is_writing(self) -> bool:
        """Whether the files of a checkpoint are being written."""
        return self._writing is not None and not self._writing.done()

    def has_failed(self) -> bool:
        """Whether a checkpoint could not be written; does not wait."""
        if self._writing is None or not self._writing.done():
            return False
        return self._writing.exception() is not None

    def wait(self) -> None:
        """Wait until the checkpoint in flight is complete on the disk, in all processes.

        Raises:
            UserError: the disk is full or not writable; older checkpoints are untouched.
        """
        from torch.distributed.checkpoint import CheckpointException

        if self._writing is None:
            return
        writing = self._writing
        self._writing = None
        try:
            writing.result()
        except CheckpointException as error:
            if parallel.rank() == 0:
                shutil.rmtree(unfinished(folder_of(self.out, self._step)), ignore_errors=True)
            reason = next(iter(error.failures.values()))[0]
            if not isinstance(reason, OSError):
                raise reason from error
            raise UserError(
                f"the checkpoint of step {self._step} cannot be written ({reason}); make room, then run the "
                "same command again to resume from the one before",
                where=self.out,
            ) from error

    def restore(self, folder: Path) -> Header:
        """Load a checkpoint written by any number of processes; each process reads its part of each tensor.

        Raises:
            UserError: it has other tensors than this run.
        """
        import torch.distributed.checkpoint as dcp

        from onepeace.train.checkpoint_storage import Reader

        header = read_header(folder)
        reader = Reader(str(folder))
        _silence_single_process()
        remedy = "it was written by another version of onepeace; train it with that, or start over in another folder"
        try:
            self.state.set_numbers(header.optimizer)
            tensors = self.state.tensors()
            # Filled in place.
            dcp.load(tensors, storage_reader=reader, process_group=self._group, no_dist=self._group is None)
        except (dcp.CheckpointException, KeyError, ValueError) as error:
            raise UserError(f"lacks tensors of this run: {remedy}", where=folder) from error
        unexpected = {index.fqn for index in reader.storage_data} - tensors.keys()
        if unexpected:
            raise UserError(f"has {min(unexpected)}, which this run does not have: {remedy}", where=folder)
        if parallel.rank() == 0:
            prune(folder, self.keep)  # the run may have been killed before it did
        return header


def _silence_single_process() -> None:
    # Said of each checkpoint of a run in one process.
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
