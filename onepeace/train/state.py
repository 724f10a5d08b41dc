"""State of a run between two steps, and its way to a checkpoint and back, whole or in shares.

Whole: one file (checkpoint.py), written by the first process. In shares, under fully_shard: a folder to which each
process writes its own, by torch.distributed.checkpoint in safetensors files. Any number of processes can read either.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.errors import UserError
from onepeace.files.atomic import sync
from onepeace.train import checkpoint, parallel


class State:
    """
    Args:
        objective: the model and what else learns, after `parallel.parallelize`.
        optimizer: of its parameters.
        average: averaged weights by parameter name of ``objective.model``; empty if the run has none.
        sharded: whether each process holds a share.
    """

    def __init__(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], sharded: bool
    ):
        self.objective, self.optimizer, self.average, self.sharded = objective, optimizer, average, sharded

    def save(self, out: Path, step: int, recipe: str, extra: Mapping[str, Any], keep: int) -> None:
        """Write the checkpoint of ``step``; every process calls it, and none goes on before it is complete.

        Raises:
            UserError: the disk is full or not writable; the checkpoints from before are untouched.
        """
        try:
            path = self._save(out, step, recipe, extra)
            if parallel.rank() == 0:
                checkpoint.prune(path, keep)
        except OSError as error:
            raise UserError(
                f"{out}: the checkpoint of step {step} cannot be written ({error}); make room, and the same command "
                "goes on from the one before"
            ) from error
        parallel.barrier()

    def _save(self, out: Path, step: int, recipe: str, extra: Mapping[str, Any]) -> Path:
        if self.sharded:
            return self._save_shares(out, step, {"step": step, "recipe": recipe, "extra": extra})
        if parallel.rank() != 0:
            return out
        model, optimizer = self.objective.state_dict(), self.optimizer.state_dict()
        return checkpoint.save(
            out, step, model=model, optimizer=optimizer, ema=self.average, recipe=recipe, extra=extra
        )

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go back to a checkpoint, written by however many processes."""
        if saved.path.is_dir():
            self._restore_shares(saved.path)
        else:
            self._restore_whole(saved)

    def _restore_whole(self, saved: checkpoint.Checkpoint) -> None:
        """Every process has read the file, and takes its share of each tensor where it holds shares."""
        own = self.objective.state_dict()
        self.objective.load_state_dict({name: _share(tensor, own.get(name)) for name, tensor in saved.model.items()})
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        # One state for each parameter, by number; a count of steps in it has no shares.
        state = {
            i: {name: _share(value, parameters[i]) for name, value in values.items()}
            for i, values in saved.optimizer["state"].items()
        }
        self.optimizer.load_state_dict({**saved.optimizer, "state": state})
        for name, tensor in self.average.items():
            tensor.copy_(_share(saved.ema[name], tensor))

    def full(self) -> dict[str, Tensor]:
        """The model's weights, averaged where they are, whole. Every process calls it; only the first gets them."""
        weights = {**self.objective.model.state_dict(), **self.average}  # type: ignore[operator, union-attr]
        whole = {}
        for name, tensor in weights.items():
            tensor = tensor.full_tensor() if parallel.is_share(tensor) else tensor  # type: ignore[operator]
            if parallel.rank() == 0:
                whole[name] = tensor.detach().clone()
        return whole

    def _tensors(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Model and optimizer as torch.distributed.checkpoint.state_dict gives them, and all tensors under one roof."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(flatten_optimizer_state_dict=True)
        found: Any = get_state_dict(self.objective, self.optimizer, options=options)
        model, optimizer = found
        tensors = {f"model/{name}": tensor for name, tensor in model.items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer.items() if isinstance(value, Tensor)}
        return model, optimizer, tensors | {f"ema/{name}": tensor for name, tensor in self.average.items()}

    def _save_shares(self, out: Path, step: int, about: dict[str, Any]) -> Path:
        import torch.distributed.checkpoint as dcp

        path = out / f"step-{step:08d}"
        temporary = path.with_suffix(".tmp")
        if parallel.rank() == 0:
            checkpoint.remove(*out.glob(checkpoint.UNFINISHED))
            temporary.mkdir(parents=True)
        parallel.barrier()
        writer = dcp.HuggingFaceStorageWriter(str(temporary), save_distributed=True, enable_consolidation=False)
        try:
            dcp.save(self._tensors()[2], storage_writer=writer)
        except dcp.CheckpointException as error:  # a BaseException, with what befell each process
            raise OSError(_failures(error)) from error
        if parallel.rank() == 0:
            about = {"format": checkpoint.FORMAT, **about, "shares": len(list(temporary.glob("*.safetensors")))}
            (temporary / checkpoint.ABOUT).write_text(json.dumps(about), encoding="utf-8")
            for written in (*temporary.iterdir(), temporary):
                sync(written)
            if path.exists():
                checkpoint.remove(path)
            os.replace(temporary, path)
            sync(out)
        return path

    def _restore_shares(self, path: Path) -> None:
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

        model, optimizer, tensors = self._tensors()
        # All are filled in place, in ``model`` and ``optimizer`` too; the averages are the run's own.
        try:
            dcp.load(
                tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=parallel.world_size() == 1
            )
        except dcp.CheckpointException as error:
            raise UserError(f"{path}: not a checkpoint of this run ({_failures(error)})") from error
        options = StateDictOptions(flatten_optimizer_state_dict=True)
        set_state_dict(
            self.objective, self.optimizer, model_state_dict=model, optim_state_dict=optimizer, options=options
        )


def _share(value: Any, like: Any) -> Any:
    """This process's share of a whole tensor, where ``like`` is one of a tensor of its shape; else the value itself."""
    if not parallel.is_share(like) or getattr(value, "shape", None) != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    share = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return share.clone()  # a view would keep the whole tensor in memory


def _failures(error: Any) -> str:
    """A CheckpointException, which is a BaseException, in one line: what befell each process."""
    return "; ".join(f"process {rank}: {' '.join(str(e[0]).split())}" for rank, e in error.failures.items())
