"""Training over several processes: communication, and DDP or FSDP2.

`torchrun` starts the processes. In a single process these functions do nothing, without torch.distributed; modules for
sharding take more than a second to import and are imported where they are used.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onepeace.device import join_device

T = TypeVar("T")

TIMEOUT = timedelta(hours=12)
"""Timeout of collectives. Others wait while the first process evaluates, trains the vocabulary and runs teachers, for
hours; torch's default of 10 minutes (NCCL) would end the run. If a process dies, torchrun ends all others."""

_former_groups: list[dist.ProcessGroup | None] = []
"""Former process groups, kept alive: if a DDP model held the last reference to one, freeing it would wait, holding the
GIL, for a thread of gloo that may be waiting for the GIL."""


def rank() -> int:
    """Rank of this process, 0 to ``world_size() - 1``."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Context in which this process is in the process group of torchrun; yields its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    device, backend = join_device(device, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield device
    finally:
        _former_groups.append(dist.group.WORLD)
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather does the same, but torch 2.13 deprecates it for a private function.
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # The losses of all processes have gradients with respect to this one's rows, which are summed.
        (grad,) = grads
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in their order, with gradient; each process has the same number."""
    return x if world_size() == 1 else _Gather.apply(x)


def gather_ragged(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, any number from each, without gradient, and the index of this process's first row."""
    if world_size() == 1:
        return x, 0
    x = x.detach().contiguous()
    counts = [int(count) for count in gather_objects(len(x))]
    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])])
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)]), sum(counts[: rank()])


def gather_objects(value: Any) -> list[Any]:
    """List of one value from each process: plain lists, numbers or text."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def mean(x: Tensor) -> Tensor:
    """The mean over processes, without gradient."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


def any_of(*flags: bool) -> list[bool]:
    """For each flag, whether it is set in any process."""
    return [any(column) for column in zip(*gather_objects(flags), strict=True)]


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def first_alone(make: Callable[[], T]) -> T:
    """Result of ``make``, called in the first process and then in the others, which find its files."""
    if rank() > 0:
        barrier()
    made = make()
    if rank() == 0:
        barrier()
    return made


def parallelize(objective: nn.Module, blocks: Iterable[nn.Module], strategy: str, device: torch.device) -> nn.Module:
    """Wrap the objective for training on all processes.

    Args:
        objective: module with the model and all other trainable parameters. Under "fsdp" the values of the first
            process count; in the others it may be on the meta device.
        blocks: modules whose parameters are gathered and freed one at a time under "fsdp".
        strategy: "ddp": each process holds all parameters; "fsdp": each holds a shard (torch's ``fully_shard``, FSDP2).
        device: device of this process.
    """
    if world_size() == 1:
        return objective.to(device)
    if strategy == "ddp":
        # A step may leave parameters unused, such as those of a third modality.
        return DistributedDataParallel(objective.to(device), find_unused_parameters=True)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # No device ever holds the whole model: it is sharded on the meta device, then tensors are broadcast one by one.
    whole = objective.state_dict() if rank() == 0 else {}
    objective.to("meta")
    # Weights are gathered in float32, and autocast casts them as in a single process.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    # fully_shard refuses scalars, such as the temperature.
    scalars = {parameter for parameter in objective.parameters() if parameter.ndim == 0}
    fully_shard(objective, mp_policy=policy, ignored_params=scalars)
    objective.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(objective, whole, options=options)
    return objective


@contextmanager
def no_sync(parallelized: nn.Module, last: bool) -> Iterator[None]:
    """Context for a batch of a step: gradients are synchronised after the last one."""
    if isinstance(parallelized, DistributedDataParallel) and not last:
        with parallelized.no_sync():
            yield
        return
    if hasattr(parallelized, "set_requires_gradient_sync"):  # after fully_shard
        parallelized.set_requires_gradient_sync(last)  # type: ignore[operator]
    yield


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is sharded over the processes (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def full_tensors(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Full tensors; sharded ones are moved to the CPU. All processes must call it; only the first gets the tensors."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if is_sharded(tensor) else tensor
        if rank() == 0:
            found[name] = full.detach().cpu() if is_sharded(tensor) else full.detach()
    return found


def shard_like(value: Tensor, like: Any) -> Tensor:
    """This process's shard of a full tensor, if ``like`` is sharded and has its shape; else the tensor itself."""
    if not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    own = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return own.clone()  # a view would keep the full tensor in memory


def clip(objective: nn.Module, limit: float | None) -> Tensor:
    """Clip the gradient's norm over the whole model to ``limit``; returns the norm before."""
    parameters = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    grads = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    shards: list[Any] = [grad for _, grad in grads if is_sharded(grad)]
    if not shards:
        return nn.utils.clip_grad_norm_(parameters, limit or float("inf"))
    rest = []
    for parameter, grad in grads:
        if not is_sharded(grad):  # parameters that fully_shard ignores
            parameter.grad = mean(grad)
            rest.append(parameter.grad)
    norms: list[Any] = [nn.utils.get_total_norm(group) for group in (shards, rest) if group]
    norm = torch.stack([n.full_tensor() if is_sharded(n) else n for n in norms]).norm()
    if limit and bool(norm > limit):
        torch._foreach_mul_([*(shard.to_local() for shard in shards), *rest], limit / (norm.item() + 1e-6))
    return norm
