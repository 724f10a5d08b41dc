"""What one step takes in one process: torch's memory trackers, and a count of FLOPs and of the bytes of collectives."""

from collections import Counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.distributed._tools.mod_tracker import ModTracker
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from onepeace.data.batch import Batch
from onepeace.plan.plan import bytes_of
from onepeace.plan.step import tensors_in

CATEGORIES = {
    "PARAM": "parameters",
    "SHARDED_PARAM": "parameters",
    "UNSHARDED_PARAM": "gathered weights",
    "ALL_GATHER": "gathered weights",
    "GRAD": "gradients",
    "SHARDED_GRAD": "gradients",
    "UNSHARDED_GRAD": "gradients",
    "REDUCE_SCATTER": "gradients",
    "OPT": "optimizer",
    "ACT": "activations",
    "TEMP": "activations",
}
"""Kinds of memory by their names in torch's trackers; all further ones are "other": inputs, averages, buffers."""


class Group(NamedTuple):
    """Processes that take part in a collective."""

    size: int
    on_machine: int
    """Number of those on the first machine."""


def moved_bytes(function: Any, inputs: Any, result: Any) -> int:
    """Bytes that a kernel reads and writes; 0 for views, and for tensors that are not filled."""
    name = function.name().partition(".")[0]
    read = tensors_in(inputs)
    written = tensors_in(result)
    storages = {tensor.untyped_storage() for tensor in read}
    is_view = all(tensor.untyped_storage() in storages for tensor in written) and not name.endswith("_")
    return 0 if is_view or "empty" in name else bytes_of(read) + bytes_of(written)


class NoModules(ModTracker):
    """In place of torch's tracker of the module that runs, which fails for views made without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.parents.add("the step")  # else a module that runs twice is taken for a second step

    def get_known_fqn(self, mod: nn.Module) -> str:
        return type(mod).__name__

    def __enter__(self) -> "NoModules":
        return self

    def __exit__(self, *error: object) -> None:
        pass


class PeakTracker(MemTracker):
    """torch's memory tracker without statistics of each module, which take longer than a step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._mod_tracker = NoModules()

    def _update_peak_stats(self, peak_state: Any) -> None:
        modules = self.memory_tracking
        self.memory_tracking = WeakIdKeyDictionary()
        super()._update_peak_stats(peak_state)
        self.memory_tracking = modules

    def peak(self) -> Counter[str]:
        """Bytes by category at the moment of the highest sum."""
        sizes: Counter[str] = Counter()
        for snapshot in self.get_tracker_snapshot("peak").values():
            for category, size in snapshot.items():
                if category != "Total":
                    sizes[CATEGORIES.get(category.name, "other")] += size  # type: ignore[attr-defined]
        return sizes

    def track_gradients(self, module: nn.Module) -> None:
        """Tell gradients from activations; sharded ones are told apart anyway."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._track_gradient)

    def _track_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._update_and_maybe_create_winfos(parameter.grad, _MemRefType.GRAD)


class ShardedTracker(PeakTracker, FSDPMemTracker):
    """Tracker of a module after ``fully_shard`` and its optimizer."""


class OperationCounter(TorchDispatchMode):
    """Counts FLOPs and the bytes of collectives.

    FLOPs follow torch's formulas but not FlopCounterMode, which fails if modules run both with and without gradient.

    Args:
        per_machine: processes on each machine.
    """

    def __init__(self, per_machine: int) -> None:
        super().__init__()
        self.per_machine = per_machine
        self.source = ""
        """Name of the sources of the batch that is computed."""
        self.flops: Counter[tuple[str, torch.dtype]] = Counter()
        """FLOPs of matrix products and convolutions by source and dtype, recomputation included."""
        self.moved = 0
        """Bytes that all other kernels read and write."""
        self.traffic: Counter[tuple[str, Group]] = Counter()
        """Bytes that are gathered, reduced or scattered, by operation of torch's c10d and group."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True imports torch's compiler, for seconds

    def start_batch(self, objective: nn.Module, inputs: tuple[Batch]) -> None:
        """Count what follows for the source of a batch; a hook that is called before the objective."""
        self.source = inputs[0].source

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # its local tensors come here afterwards
        if func is torch.ops.prim.device.default and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # a shortcut, as most calls are this question
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        flops_of = flop_registry.get(func._overloadpacket)
        if flops_of is not None:
            self.flops[self.source, args[0].dtype] += flops_of(*args, **kwargs, out_val=result)
        else:
            self.moved += moved_bytes(func, (args, kwargs), result)
        if func.namespace == "c10d" and func in collective_ops:
            ranks = dist.get_process_group_ranks(CollectiveOp.get_process_group(func, args))
            group = Group(len(ranks), sum(rank < self.per_machine for rank in ranks))
            size = CollectiveOp.get_comm_tensor_size(func, result, args, kwargs)
            self.traffic[func._opname.strip("_"), group] += size
        return result
