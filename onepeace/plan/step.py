"""What one training step takes in one process, counted in a step of tensors without values (torch's fake tensors).

The recipe's own objective runs over this process's items with whole weights, as if the other processes had the same
items; what they add (shards, gathered weights, exchanged gradients) is arithmetic over the sharding units.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # the path that torch's documentation gives
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode  # the path that torch's "Extending PyTorch" gives
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from onepeace.data.batch import Batch
from onepeace.model import encoder
from onepeace.train import parallel
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe
from onepeace.train.setup import build_optimizer


class Group(NamedTuple):
    """Processes that take part in a collective."""

    size: int
    on_machine: int
    """Number of those on the first machine."""


class StepCost(NamedTuple):
    """What a step takes in one process."""

    memory: Counter[str]
    """Bytes at the peak by category: parameters, gradients, optimizer, gathered weights, activations, other."""
    flops: Counter[tuple[str, torch.dtype]]
    """FLOPs of matrix products and convolutions by source and dtype, recomputation included."""
    moved: int
    """Bytes that all other kernels read and write."""
    traffic: Counter[tuple[str, Group]]
    """Bytes that are gathered, reduced or scattered, by operation and group."""
    checkpoint: int
    """Bytes of a checkpoint, of all processes together."""


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def moved_bytes(function: Any, inputs: Any, result: Any) -> int:
    """Bytes that a kernel reads and writes; 0 for views, and for tensors that are not filled."""
    name = function.name().partition(".")[0]
    read = tensors_in(inputs)
    written = tensors_in(result)
    storages = {tensor.untyped_storage() for tensor in read}
    is_view = all(tensor.untyped_storage() in storages for tensor in written) and not name.endswith("_")
    return 0 if is_view or "empty" in name else bytes_of(read) + bytes_of(written)


class Meter(TorchDispatchMode):
    """Counts FLOPs, the bytes that kernels move, and the bytes of the tensors that are alive."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.source = ""
        """Name of the sources of the batch that is computed."""
        self.flops: Counter[tuple[str, torch.dtype]] = Counter()
        self.moved = 0
        self.gradients: dict[Tensor, int] = {}
        """Bytes of the gradients that there are, by parameter."""
        self.peak: Counter[str] = Counter()
        """Bytes of activations and gradients at the moment of the highest sum."""
        self._alive = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        """Memory that was counted, or was there before."""
        self.ignore(known)

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        self._known.update(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.name() == "aten::_local_scalar_dense" and args[0].dtype == torch.bool:
            return False  # transformers asks whether no token of a batch is padding
        result = func(*args, **kwargs)
        flops_of = flop_registry.get(func.overloadpacket)
        if flops_of is not None:
            self.flops[self.source, args[0].dtype] += flops_of(*args, **kwargs, out_val=result)
        else:
            self.moved += moved_bytes(func, (args, kwargs), result)
        for tensor in tensors_in(result):
            self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        """Count memory until it is freed."""
        if storage not in self._known:
            self._known.add(storage)
            self._alive += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
            self.note_peak()

    def _free(self, size: int) -> None:
        self._alive -= size

    def note_peak(self) -> None:
        gradients = sum(self.gradients.values())
        if self._alive + gradients > self.peak.total():
            self.peak = Counter(activations=self._alive, gradients=gradients)


def efficient_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """The kernel that CUDA has for attention with a bias, whose rows torch pads to a multiple of 8."""
    if attn_mask is not None:
        length = attn_mask.shape[-1]
        padded = F.pad(attn_mask.to(query.dtype), (0, -length % 8))[..., :length]
        attn_mask = padded.expand(*query.shape[:3], length)
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, attn_mask, torch.is_grad_enabled(), scale=scale)[0]


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Context in which layers on the CPU compute and save what they would on a GPU."""
    layer_norm = F.layer_norm

    def float32_norm(x: Tensor, shape: Any, *others: Any, **named: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):  # autocast casts the arguments of this operation on a GPU only
            x = x.float()
            others = tuple(value.float() if isinstance(value, Tensor) else value for value in others)
        return layer_norm(x, shape, *others, **named)

    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION))
        stack.enter_context(mock.patch.object(encoder, "FOLDED", ()))
        stack.enter_context(mock.patch.object(F, "layer_norm", float32_norm))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", efficient_attention))
        yield


def measure_step(
    recipe: Recipe, objective: Objective, batches: Sequence[Batch], processes: int, per_machine: int
) -> StepCost:
    """Cost of one step of one process.

    Args:
        recipe: the recipe, with ``run.shard`` and ``run.keep_gathered`` set if weights are sharded.
        objective: on the meta device, in training mode; it cannot be used afterwards.
        batches: this process's part of the step.
        processes: number of processes.
        per_machine: processes on each machine.
    """
    bfloat16 = recipe.run.precision != "float32"
    shards = (recipe.run.shard or 1) if processes > 1 and recipe.run.parallel == "fsdp" else 1
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    states = optimizer_states(recipe, objective, trained)
    gradients = bytes_of(trained)
    average = gradients if recipe.run.ema else 0
    checkpoint = bytes_of(objective.state_dict().values()) + bytes_of(states) + average
    memory = Counter(parameters=bytes_of(objective.parameters()) // shards, optimizer=bytes_of(states) // shards)
    memory["other"] = average // shards + bytes_of(objective.buffers())
    gathers = Gathers(objective, width=2 if bfloat16 else 4)
    if shards > 1 and bfloat16:
        for parameter in objective.parameters():
            if parameter.ndim:
                parameter.data = parameter.data.bfloat16()  # as they are gathered
    traffic: Counter[tuple[str, Group]] = Counter()
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_a_gpu(), as_first_of(processes, per_machine, traffic):
        objective.to_empty(device="cpu")
        meter = Meter([*objective.parameters(), *objective.buffers()])
        keep_shards_of_gradients(objective, meter, shards)
        for batch in batches:
            memory["other"] += take_passes(objective, batch.map(without_values), meter, bfloat16, gathers)
    memory += meter.peak
    if shards > 1:
        is_kept = bool(recipe.run.keep_gathered)
        memory["gathered weights"] = gathers.at_once(is_kept)
        group = Group(shards, min(shards, per_machine))
        traffic["allgather_base", group] += gathers.in_step(len(batches), is_kept)
        traffic.update(reductions(gradients * len(batches), shards, processes, per_machine))
    elif processes > 1:
        memory["gradients"] += gradients  # buckets
        traffic["allreduce", Group(processes, min(processes, per_machine))] += gradients
    return StepCost(memory, meter.flops, meter.moved, traffic, checkpoint)


class Gathers:
    """What a step gathers of the sharding units of an objective: inner ones first, and the objective last."""

    def __init__(self, objective: Objective, width: int) -> None:
        self.sizes: dict[nn.Module, int] = {}
        """Bytes of each unit that no inner one has, ``width`` a parameter."""
        self.total = 0
        """Bytes gathered so far, if each unit is freed after every pass."""
        self.in_backward = False
        claimed: set[Tensor] = set()
        for unit in [*objective.model.sharding_units(), objective]:
            own = {parameter for parameter in unit.parameters() if parameter.ndim} - claimed
            self.sizes[unit] = width * sum(parameter.numel() for parameter in own)
            claimed |= own
            unit.register_forward_pre_hook(self._count)

    def _count(self, unit: nn.Module, _: Any) -> None:
        """A forward pass gathers a unit, its backward pass once more, and once again as torch gathers ahead."""
        if not self.in_backward:
            self.total += self.sizes[unit] * (3 if torch.is_grad_enabled() else 1)

    def in_step(self, num_batches: int, kept: bool) -> int:
        """Bytes gathered in a step, whose units are kept to the end of a batch, or freed after every pass."""
        return num_batches * sum(self.sizes.values()) if kept else self.total

    def at_once(self, kept: bool) -> int:
        """Bytes that are there at once: all, or those outside of the units and the two largest."""
        *units, outside = self.sizes.values()
        return outside + sum(units if kept else sorted(units)[-2:])


def reductions(gradients: int, shards: int, processes: int, per_machine: int) -> Counter[tuple[str, Group]]:
    """Bytes of gradients that fsdp reduces: over the processes that share a copy, then over the copies."""
    traffic: Counter[tuple[str, Group]] = Counter()
    traffic["reduce_scatter_base", Group(shards, min(shards, per_machine))] = gradients
    if processes > shards:
        traffic["allreduce", Group(processes // shards, max(per_machine // shards, 1))] = gradients // shards
    return traffic


def optimizer_states(recipe: Recipe, objective: Objective, trained: Sequence[Tensor]) -> list[Tensor]:
    """The states that the optimizer makes in its first step."""
    optimizer = build_optimizer(recipe, objective)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    for settings in optimizer.param_groups:
        settings["fused"] = False  # needs a device that computes
    optimizer.step()
    optimizer.zero_grad()
    return [tensor for states in optimizer.state.values() for tensor in states.values()]


def without_values(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu")


def keep_shards_of_gradients(objective: Objective, meter: Meter, shards: int) -> None:
    """Count of each gradient that is complete what stays: all or a shard of it, in float32."""

    def keep(parameter: Tensor) -> None:
        parameter.grad = None
        meter.gradients[parameter] = 4 * parameter.numel() // shards

    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(keep)


def take_passes(objective: Objective, batch: Batch, meter: Meter, bfloat16: bool, gathers: Gathers) -> int:
    """Forward and backward pass of a batch; returns the bytes of its inputs."""
    inputs = tensors_in([dict(part.inputs) for part in batch.parts or [batch]])
    meter.ignore(inputs)
    meter.source = batch.source
    with meter:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = objective(batch)["loss"]
        gathers.in_backward = True
        loss.backward()
    gathers.in_backward = False
    meter.note_peak()
    return bytes_of(inputs)


@contextmanager
def as_first_of(processes: int, per_machine: int, traffic: Counter[tuple[str, Group]]) -> Iterator[None]:
    """Context in which tensors and values are gathered from so many processes, which are all like this one."""
    everybody = Group(processes, min(processes, per_machine))

    def gather(x: Tensor) -> Tensor:
        if processes == 1:
            return x
        gathered = x.repeat(processes, *[1] * (x.ndim - 1))
        traffic["allgather", everybody] += bytes_of([gathered])
        if gathered.requires_grad:
            gathered.register_hook(sum_gradient)
        return gathered

    def sum_gradient(gradient: Tensor) -> None:
        """A gradient is summed over the processes, if the loss has one for what was gathered."""
        traffic["allreduce", everybody] += bytes_of([gradient])

    def gather_values(value: Any) -> list[Any]:
        return [value] * processes

    with mock.patch.multiple(
        parallel,
        world_size=lambda: processes,
        gather=gather,
        gather_ragged=lambda x: (gather(x.detach()), 0),
        gather_objects=gather_values,
        gather_numbers=gather_values,
    ):
        yield
