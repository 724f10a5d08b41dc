"""Training over several processes: communication, and DDP or FSDP2.

`torchrun` starts the processes. In a single process these functions do nothing, without torch.distributed; modules for
sharding take more than a second to import and are imported where they are used.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onepeace.device import join_device, total_memory
from onepeace.errors import UserError
from onepeace.train.sections import RunConfig

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy

log = logging.getLogger(__name__)

T = TypeVar("T")

SOCKETS = 3
"""Open files of a process for each process of the group: gloo connects every pair, for training and checkpoints."""
OTHER_FILES = 512
"""Open files of a process beside those: shards, workers, the log."""
TIMEOUT = timedelta(minutes=10)
"""Timeout of collectives: a process that hangs ends the run. The first process does alone only what takes seconds."""
GATHERED_SHARE = 0.1
"""Share of a device's memory up to which gathered weights are kept; see `keeps_gathered`."""

_alike = 1
"""Number of processes that a plan takes to be like this one; see `alike`."""
_former_groups: list[dist.ProcessGroup | None] = []
"""Former process groups, kept alive: if a DDP model held the last reference to one, freeing it would wait, holding the
GIL, for a thread of gloo that may be waiting for the GIL."""


def rank() -> int:
    """Rank of this process, 0 to ``world_size() - 1``."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else _alike


@contextmanager
def alike(count: int) -> Iterator[None]:
    """Context without a process group, in which this process is the first of ``count`` that have what it has: what it
    gathers is its own. It is for plans."""
    global _alike
    _alike = count
    try:
        yield
    finally:
        _alike = 1


@contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Context in which this process is in the process group of torchrun; yields its device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    allow_open_files(SOCKETS * int(os.environ["WORLD_SIZE"]) + OTHER_FILES)
    device, backend = join_device(device, int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield device
    finally:
        _former_groups.append(dist.group.WORLD)
        dist.destroy_process_group()


def allow_open_files(count: int) -> None:
    """Raise this process's soft limit of open files, usually 1,024, to a number; a warning if the hard one is lower."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= count:
        return
    if hard != unlimited and hard < count:
        log.warning("a process needs about %d open files, and the limit is %d; raise it: ulimit -n", count, hard)
        count = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def new_cpu_group(timeout: timedelta) -> dist.ProcessGroup | None:
    """Group of all processes for messages from another thread, whose order differs from that of the training; None
    without a process group. All processes must call it."""
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo", timeout=timeout)
    _former_groups.append(group)
    return group


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
    if dist.is_initialized():
        return _Gather.apply(x)
    return x if world_size() == 1 else x.repeat(world_size(), *[1] * (x.ndim - 1))


def gather_ragged(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes, any number from each, without gradient, and the index of this process's first row."""
    if not dist.is_initialized():
        return gather(x.detach()), 0
    x = x.detach().contiguous()
    counts = gather_numbers(len(x))
    padding = x.new_zeros(max(counts) - len(x), *x.shape[1:])
    padded = torch.cat([x, padding])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    rows = [part[:count] for part, count in zip(parts, counts, strict=True)]
    first_row = sum(counts[: rank()])
    return torch.cat(rows), first_row


class _FromNext(torch.autograd.Function):
    """The rows of the next process, in a ring; gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _shift(x, by=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return _shift(grad, by=1)


def _shift(x: Tensor, by: int) -> Tensor:
    """Send a tensor to the process ``by`` further on, and receive that of the one as far behind."""
    received = torch.empty_like(x, memory_format=torch.contiguous_format)
    send = dist.P2POp(dist.isend, x.contiguous(), (rank() + by) % world_size())
    receive = dist.P2POp(dist.irecv, received, (rank() - by) % world_size())
    for work in dist.batch_isend_irecv([send, receive]):
        work.wait()
    return received


def around(x: Tensor) -> Iterator[Tensor]:
    """Rows of each process with gradient, this one's first, handed on in a ring: those of one other are held at a time.
    Each process has the same number."""
    yield x
    for _ in range(world_size() - 1):
        if dist.is_initialized():
            x = _FromNext.apply(x)
        yield x


def gather_objects(value: Any) -> list[Any]:
    """List of one value from each process: plain lists, numbers or text. They are exchanged on the CPU."""
    if not dist.is_initialized():
        return [value] * world_size()
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather_numbers(number: int) -> list[int]:
    """List of one number from each process. They are exchanged on the CPU, so that no one waits for a GPU."""
    if not dist.is_initialized():
        return [number] * world_size()
    numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(numbers, torch.tensor([number]))
    return torch.cat(numbers).tolist()


def broadcast(tensor: Tensor) -> None:
    """Give a tensor the values that it has in the first process."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)


def mean(x: Tensor) -> Tensor:
    """The mean over processes, without gradient."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


class AnyProcess:
    """Questions to all processes, each answered one step later, so that no step waits for the answer.

    Every process calls `ask` equally often, with the same number of flags.
    """

    def __init__(self) -> None:
        self._flags: Tensor | None = None
        self._reduction: Any = None

    def ask(self, *flags: bool) -> list[bool]:
        """Ask whether any process has each flag set; returns the answers to the flags of the call before, all False on
        the first call. In a single process, the answers are the flags themselves."""
        if world_size() == 1:
            return list(flags)
        answers = self.answers(len(flags))
        self._flags = torch.tensor(flags, dtype=torch.int32)
        self._reduction = dist.all_reduce(self._flags, dist.ReduceOp.MAX, async_op=True)
        return answers

    def answers(self, count: int) -> list[bool]:
        """The answers to the ``count`` flags of the last call of `ask`."""
        if self._flags is None:
            return [False] * count
        self._reduction.wait()
        return [bool(flag) for flag in self._flags.tolist()]


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def first_decides(answer: bool) -> bool:
    """The answer of the first process, which all take."""
    return bool(gather_numbers(int(answer))[0])


def parallelize(
    objective: nn.Module,
    units: Iterable[nn.Module],
    config: RunConfig,
    device: torch.device,
    *,
    bfloat16: bool = False,
) -> None:
    """Move the objective to its device, and shard its parameters if the recipe says so.

    Args:
        objective: module with the model and all other trainable parameters. Under "fsdp" the values of the first
            process count; in the others it may be on the meta device.
        units: modules whose parameters are gathered and freed one at a time under "fsdp", inner ones first.
        config: the recipe's ``run``. ``parallel`` is "ddp": each process holds all parameters (see `replicate`); or
            "fsdp": each holds a shard (torch's ``fully_shard``, FSDP2) of a copy that ``shard`` processes share.
        device: device of this process.
        bfloat16: whether forward passes run in bfloat16, in which weights are then gathered.
    """
    if world_size() > 1 and config.parallel == "fsdp":
        _shard_and_load(objective, list(units), config, device, bfloat16)
    else:
        objective.to(device)


def replicate(objective: nn.Module) -> nn.Module:
    """The objective, wrapped so that the backward pass averages gradients over all processes under "ddp".

    Every step searches the graph for parameters that get no gradient in it, such as those of another modality.
    """
    if world_size() == 1:
        return objective
    return DistributedDataParallel(objective, find_unused_parameters=True)


def _shard_and_load(
    objective: nn.Module,
    units: list[nn.Module],
    config: RunConfig,
    device: torch.device,
    bfloat16: bool,
) -> None:
    """Shard the parameters of the objective; the first process has their values."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    # No device ever holds the whole model: it is sharded on the meta device, then tensors are broadcast one by one.
    whole = objective.state_dict() if rank() == 0 else {}
    buffers = dict(objective.named_buffers())
    objective.to("meta")
    least_memory = min(gather_numbers(total_memory(device) or 0))
    config = replace(config, keep_gathered=keeps_gathered(units, config.keep_gathered, least_memory))
    shard(objective, units, config, device, bfloat16)
    objective.to_empty(device=device)
    state_options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(objective, whole, options=state_options)
    _restore_buffers(objective, buffers)


def _restore_buffers(objective: nn.Module, buffers: Mapping[str, Tensor]) -> None:
    """Give buffers that no state_dict has, such as positions, the values that they had in the first process."""
    stored = objective.state_dict().keys()
    for name, buffer in objective.named_buffers():
        if name not in stored:
            if rank() == 0:
                buffer.copy_(buffers[name])
            broadcast(buffer)


def shard(
    objective: nn.Module,
    units: list[nn.Module],
    config: RunConfig,
    device: torch.device,
    bfloat16: bool,
) -> None:
    """Shard the parameters of the objective where they are; ``config.keep_gathered`` has been decided."""
    from torch.distributed.fsdp import fully_shard

    # It warns of changes in place to the output of a unit, of which there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    shard_unit = partial(
        fully_shard,
        mesh=sharding_mesh(device, config.shard),
        mp_policy=precision_policy(bfloat16),
        reshard_after_forward=not config.keep_gathered,
    )
    for unit in units:
        shard_unit(unit)
    # fully_shard refuses scalars, such as the temperature.
    scalars = {parameter for parameter in objective.parameters() if parameter.ndim == 0}
    sharded = shard_unit(objective, ignored_params=scalars)
    if config.keep_gathered:
        sharded.set_reshard_after_backward(False)  # `free_gathered` does it once, after all passes of a step


def sharding_mesh(device: torch.device, shard: int | None) -> "DeviceMesh":
    """Mesh of copies of the weights and of the processes that share one.

    Args:
        shard: number of processes that share a copy; None: those of one machine.

    Raises:
        UserError: the processes cannot be divided into groups of this size.
    """
    from torch.distributed.device_mesh import init_device_mesh

    if shard is None:
        shard = int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))
    if world_size() % shard:
        raise UserError(f"run.shard {shard} does not divide the {world_size()} processes; set a divisor of them")
    if shard == world_size():
        return init_device_mesh(device.type, (shard,), mesh_dim_names=("shard",))
    shape = (world_size() // shard, shard)
    return init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))


def precision_policy(bfloat16: bool) -> "MixedPrecisionPolicy":
    """Precision of gathered weights and of reduced gradients.

    The inputs of modules keep their precision, and autocast chooses that of each operation, as in a single process:
    the residual stream stays in float32, as branches begin with a gain of 1e-6 that bfloat16 would round away.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )


def keeps_gathered(units: Iterable[nn.Module], choice: bool | Literal["auto"], device_bytes: int) -> bool:
    """Whether gathered weights stay through all passes of a step, as ``run.keep_gathered`` chooses.

    "auto": if the units take at most `GATHERED_SHARE` of ``device_bytes``, the memory of the smallest device.
    """
    if choice != "auto":
        return choice
    return 2 * sum(_sizes_of(units)) <= GATHERED_SHARE * device_bytes


def gathered_at_once(units: Sequence[nn.Module], objective: nn.Module, kept: bool) -> int:
    """Number of gathered weights that a process holds at once: those of all units, if they are kept, or else of the two
    largest, as torch gathers ahead; and those outside of the units."""
    *sizes, outside = _sizes_of([*units, objective])
    return outside + sum(sizes if kept else sorted(sizes)[-2:])


def _sizes_of(units: Iterable[nn.Module]) -> list[int]:
    """Number of parameters of each unit, inner ones first, without those of the units inside it."""
    sizes = []
    claimed: set[nn.Parameter] = set()
    for unit in units:
        own = set(unit.parameters()) - claimed
        claimed |= own
        sizes.append(sum(parameter.numel() for parameter in own))
    return sizes


def free_gathered(parallelized: nn.Module) -> None:
    """Free the gathered weights that `keeps_gathered` has kept; to be called after the backward pass of a batch."""
    for module in parallelized.modules():
        if hasattr(module, "reshard"):  # after fully_shard
            module.reshard()  # type: ignore[operator]


@contextmanager
def no_sync(parallelized: nn.Module, last: bool) -> Iterator[None]:
    """Context for a batch of a step: gradients are synchronised after the last one under "ddp".

    Under "fsdp" they are after each: gradients that wait take as much memory as the whole model, and torch cannot let
    those of units wait that a batch does not use.
    """
    if isinstance(parallelized, DistributedDataParallel) and not last:
        with parallelized.no_sync():
            yield
        return
    yield


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is sharded over the processes (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def full_tensors(tensors: Mapping[str, Any], everywhere: bool = False) -> dict[str, Tensor]:
    """Full tensors; sharded ones are moved to the CPU. All processes must call it; only the first gets the tensors, or
    all of them ``everywhere``."""
    full_by_name = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if is_sharded(tensor) else tensor
        if everywhere or rank() == 0:
            full_by_name[name] = full.detach().cpu() if is_sharded(tensor) else full.detach()
    return full_by_name


def clip_gradients(objective: nn.Module, limit: float | None) -> Tensor:
    """Clip the gradient's norm over the whole model to ``limit``; returns the norm before, without waiting for it."""
    trained = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    if not any(is_sharded(parameter) for parameter in trained):
        return nn.utils.clip_grad_norm_(trained, limit or float("inf"))
    shards: list[Any] = []
    scalars: list[Tensor] = []
    for parameter in trained:
        if is_sharded(parameter):
            shards.append(parameter.grad)
        else:  # ignored by fully_shard, which therefore did not reduce their gradients
            parameter.grad = mean(parameter.grad)  # type: ignore[arg-type]
            scalars.append(parameter.grad)
    norm = nn.utils.get_total_norm(shards).full_tensor()  # type: ignore[attr-defined]
    if scalars:
        norm = torch.stack([norm, nn.utils.get_total_norm(scalars)]).norm()
    if limit:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([*(shard.to_local() for shard in shards), *scalars], factor)
    return norm
