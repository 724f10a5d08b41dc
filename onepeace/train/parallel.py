"""Several processes that train one model: their number, what they exchange, how the model is split.

`torchrun` starts the processes. In a single one every function here does nothing, and torch.distributed is not touched;
what it needs for sharding takes more than a second to import, so that is done where it is used.
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

PATIENCE = timedelta(hours=12)
"""Time that a process waits for the others. The first one evaluates, trains the vocabulary and asks outside teachers
while they wait, and that may take hours; torch's own 10 minutes (NCCL) would end the run. A process that dies needs no
limit: torchrun then ends the others."""

_left: list[dist.ProcessGroup | None] = []
"""Groups this process has left, kept as long as it lives. If a model under DDP held the last reference to one, its end
would wait, with Python's lock, for a thread of gloo that may be waiting for that lock."""


def rank() -> int:
    """Number of this process, 0 to ``world_size() - 1``."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for the time of the block; yields this process's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    device, backend = join_device(device, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield device
    finally:
        _left.append(dist.group.WORLD)
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather does the same, and torch 2.13 deprecates it for a private function.
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every process's loss has a gradient for the rows of this one: the sum of them is its own.
        (grad,) = grads
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(world_size())[rank()]


def gather(x: Tensor) -> Tensor:
    """The rows of all processes in their order, with gradient; each has as many."""
    return x if world_size() == 1 else _Gather.apply(x)


def gather_ragged(x: Tensor) -> tuple[Tensor, int]:
    """The rows of all processes, without gradient, however many each has; and the row where this one's begin."""
    if world_size() == 1:
        return x, 0
    x = x.detach().contiguous()
    counts = [int(count) for count in gather_objects(len(x))]
    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])])
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)]), sum(counts[: rank()])


def gather_objects(value: Any) -> list[Any]:
    """One value of each process. Only plain ones: lists, numbers, text."""
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
    """For each flag whether it is set in any process."""
    return [any(column) for column in zip(*gather_objects(flags), strict=True)]


def barrier() -> None:
    """Until every process is here."""
    if world_size() > 1:
        dist.barrier()


def first_alone(make: Callable[[], T]) -> T:
    """Result of ``make`` in each process; the first makes it before the others, who find what it left in files."""
    if rank() > 0:
        barrier()
    made = make()
    if rank() == 0:
        barrier()
    return made


def parallelize(objective: nn.Module, blocks: Iterable[nn.Module], way: str, device: torch.device) -> nn.Module:
    """The objective, ready to train on all processes.

    Args:
        objective: holds the model and every other parameter that learns. Under "fsdp" only the first process's values
            count, and only there need be any: it may be on the meta device in the others.
        blocks: what is gathered and freed one at a time under "fsdp".
        way: "ddp", every process holds everything; "fsdp", each holds its share (``fully_shard`` of torch: FSDP2).
        device: this process's.
    """
    if world_size() == 1:
        return objective.to(device)
    if way == "ddp":
        # A step may have pairs that do not touch every parameter: those of a third modality, say.
        return DistributedDataParallel(objective.to(device), find_unused_parameters=True)
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # No device ever holds the whole model: it is cut while it has no values, then each tensor is sent around by itself.
    whole = objective.state_dict() if rank() == 0 else {}
    objective.to("meta")
    # Weights are gathered in float32 and autocast rounds them where it should, as in a single process.
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for block in blocks:
        fully_shard(block, mp_policy=policy)
    # The temperature: nothing to shard in it, and fully_shard refuses it.
    scalars = {parameter for parameter in objective.parameters() if parameter.ndim == 0}
    fully_shard(objective, mp_policy=policy, ignored_params=scalars)
    objective.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(objective, whole, options=options)
    return objective


@contextmanager
def no_sync(parallelized: nn.Module, last: bool) -> Iterator[None]:
    """Around the passes of one of a step's batches: gradients are exchanged with the last one's."""
    if isinstance(parallelized, DistributedDataParallel) and not last:
        with parallelized.no_sync():
            yield
        return
    if hasattr(parallelized, "set_requires_gradient_sync"):  # after fully_shard
        parallelized.set_requires_gradient_sync(last)  # type: ignore[operator]
    yield


def is_share(tensor: Any) -> bool:
    """Whether a tensor is cut over the processes (a DTensor): each holds its share."""
    return hasattr(tensor, "full_tensor")


def whole(tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors as a single process has them, those that are cut on the CPU. Every process calls it; only the first gets
    them."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if is_share(tensor) else tensor
        if rank() == 0:
            found[name] = full.detach().cpu() if is_share(tensor) else full.detach()
    return found


def share(value: Tensor, like: Any) -> Tensor:
    """This process's share of a whole tensor, where ``like`` is one of a tensor of its shape; else the value itself."""
    if not is_share(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    own = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return own.clone()  # a view would keep the whole tensor in memory


def clip(objective: nn.Module, limit: float | None) -> Tensor:
    """Scale the gradient to a norm of at most ``limit``; returns the norm before, of the whole model."""
    parameters = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    grads = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    shares: list[Any] = [grad for _, grad in grads if is_share(grad)]
    if not shares:
        return nn.utils.clip_grad_norm_(parameters, limit or float("inf"))
    rest = []
    for parameter, grad in grads:
        if not is_share(grad):  # what fully_shard leaves alone
            parameter.grad = mean(grad)
            rest.append(parameter.grad)
    norms: list[Any] = [nn.utils.get_total_norm(group) for group in (shares, rest) if group]
    norm = torch.stack([n.full_tensor() if is_share(n) else n for n in norms]).norm()
    if limit and bool(norm > limit):
        torch._foreach_mul_([*(share.to_local() for share in shares), *rest], limit / (norm.item() + 1e-6))
    return norm
