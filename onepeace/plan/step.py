"""What one training step takes in one process, counted in a step on the meta device, where nothing is computed.

The recipe's own objective runs over this process's items with whole weights, as if the other processes had the same
items; what they add (shards, gathered weights, exchanged gradients) is arithmetic over the sharding units. The meta
device has neither autocast nor a fused kernel for attention; `GpuKernels` makes up for them.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # the path that torch's "Extending PyTorch" gives
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from onepeace.data.batch import Batch
from onepeace.layers.recompute import RecomputedBlock, RecomputedEnd
from onepeace.train import parallel
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe
from onepeace.train.setup import build_optimizer

META = torch.device("meta")
IN_BFLOAT16 = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, torch.matmul, torch.bmm, torch.baddbmm, torch.addmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.bmm),
}
"""Functions that autocast computes in bfloat16."""
IN_FLOAT32 = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, Tensor.softmax, Tensor.log_softmax}
"""Functions that autocast computes in float32 on a GPU."""


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


def moved_bytes(function: Any, inputs: Any, result: Any) -> int:
    """Bytes that a kernel reads and writes; 0 for views, and for tensors that are not filled."""
    name = function.name().partition(".")[0]
    read = tensors_in(inputs)
    written = tensors_in(result)
    storages = {tensor.untyped_storage() for tensor in read}
    is_view = all(tensor.untyped_storage() in storages for tensor in written) and not name.endswith("_")
    return 0 if is_view or "empty" in name else bytes_of(read) + bytes_of(written)


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Meter(TorchDispatchMode):
    """Counts FLOPs, the bytes that kernels move, and the bytes of the tensors that are alive."""

    def __init__(self, shards: int) -> None:
        super().__init__()
        self.shards = shards
        """Number of processes that share a copy of the weights."""
        self.source = ""
        """Name of the sources of the batch that is computed."""
        self.flops: Counter[tuple[str, torch.dtype]] = Counter()
        self.moved = 0
        self.gradients: dict[Tensor, int] = {}
        """Bytes of the gradients that there are, by parameter."""
        self.peak: Counter[str] = Counter()
        """Bytes of activations and gradients at the moment of the highest sum."""
        self._alive = 0
        self._known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

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
        if storage in self._known:
            return
        self._known[storage] = True
        self._alive += storage.nbytes()
        weakref.finalize(storage, self._free, storage.nbytes())
        self.note_peak()

    def note_peak(self) -> None:
        gradients = sum(self.gradients.values())
        if self._alive + gradients > self.peak.total():
            self.peak = Counter(activations=self._alive, gradients=gradients)

    def _free(self, size: int) -> None:
        self._alive -= size

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the memory of tensors that were there before."""
        for tensor in tensors:
            self._known[tensor.untyped_storage()] = True

    def take_gradient(self, parameter: Tensor) -> None:
        """A hook for a parameter whose gradient is complete: all or a shard of it stays, in float32."""
        parameter.grad = None
        self.gradients[parameter] = 4 * parameter.numel() // self.shards


class GpuKernels(TorchFunctionMode):
    """Autocast to bfloat16, and attention as a fused kernel; inside of the functions that `run` calls."""

    def __init__(self, meter: Meter, bfloat16: bool) -> None:
        super().__init__()
        self.meter = meter
        self.bfloat16 = bfloat16
        self.casts: dict[Tensor, Tensor] = {}
        """Weights in bfloat16, which autocast keeps until the end of the forward pass."""
        self.last_cast: Any = None
        """Weak references to an input and its cast, which several products share (`layers.precision.cast_once`)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return FusedAttention.apply(self.meter, *args[:3], kwargs.get("attn_mask"))
        if self.bfloat16 and func in IN_BFLOAT16:
            args, kwargs = tree_map(partial(self._cast, torch.bfloat16), (args, kwargs))
        elif self.bfloat16 and func in IN_FLOAT32:
            args, kwargs = tree_map(partial(self._cast, torch.float32), (args, kwargs))
        return func(*args, **kwargs)

    def _cast(self, dtype: torch.dtype, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        if value.dtype == dtype:
            return value
        if not (value.is_leaf and value.requires_grad):
            return self._cast_once(dtype, value)
        if value not in self.casts:
            self.casts[value] = value.to(dtype)
        return self.casts[value]

    def _cast_once(self, dtype: torch.dtype, value: Tensor) -> Tensor:
        if self.last_cast is not None and self.last_cast[0]() is value:
            former = self.last_cast[1]()
            if former is not None and former.dtype == dtype and former.requires_grad == value.requires_grad:
                return former
        cast = value.to(dtype)
        self.last_cast = (weakref.ref(value), weakref.ref(cast))
        return cast

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        with self:
            return function(*args)

    def _run_end(self, compute_end: Callable[..., Any], function: Callable[..., Any], *inputs: Tensor) -> Any:
        return compute_end(partial(self.run, function), *inputs)

    def take_part_in(self, objective: Objective) -> None:
        """Run the passes, and what the backward pass recomputes of them: torch leaves a mode before that pass."""
        for term in objective.terms.values():
            term.outputs = partial(self.run, term.outputs)  # type: ignore[assignment,arg-type]
        for module in objective.modules():
            if isinstance(module, RecomputedBlock):
                module.compute = partial(self.run, module.compute)  # type: ignore[method-assign]
            elif isinstance(module, RecomputedEnd):
                module.compute_end = partial(self._run_end, module.compute_end)  # type: ignore[method-assign]


class FusedAttention(torch.autograd.Function):
    """Attention that keeps its inputs, its output and a number for each query, and no scores."""

    @staticmethod
    def forward(ctx: Any, meter: Meter, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        ctx.meter = meter
        meter.flops[meter.source, q.dtype] += sdpa_flop_count(q.shape, k.shape, v.shape)
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, bias, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        q, k, v, bias, *_ = ctx.saved_tensors
        flops = sdpa_backward_flop_count(grads[0].shape, q.shape, k.shape, v.shape)
        ctx.meter.flops[ctx.meter.source, q.dtype] += flops
        of_bias = None
        if ctx.needs_input_grad[4]:
            of_bias = q.new_empty(*q.shape[:3], k.shape[2]).sum_to_size(bias.shape)
        return None, torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), of_bias


class Units:
    """The sharding units of an objective, inner ones first and the objective last, and what a step gathers of them."""

    def __init__(self, objective: Objective, kept: bool) -> None:
        self.kept = kept
        """Whether gathered weights stay until the end of a batch's backward pass."""
        self.sizes: dict[nn.Module, int] = {}
        """Number of parameters of each unit that no inner one has."""
        self.calls: Counter[nn.Module] = Counter()
        """Number of times that each unit is gathered for the batch, if it is freed after every pass."""
        self.in_backward = False
        self.gathered = 0
        """Number of parameters gathered so far."""
        claimed: set[Tensor] = set()
        for unit in [*objective.model.sharding_units(), objective]:
            own = {parameter for parameter in unit.parameters() if parameter.ndim} - claimed
            self.sizes[unit] = sum(parameter.numel() for parameter in own)
            claimed |= own
            unit.register_forward_pre_hook(self._count)

    def _count(self, unit: nn.Module, _: Any) -> None:
        """A forward pass gathers a unit, its backward pass once more, and once again as torch gathers ahead."""
        if not self.in_backward:
            self.calls[unit] += 3 if torch.is_grad_enabled() else 1

    def end_batch(self) -> None:
        for unit, count in self.calls.items():
            self.gathered += self.sizes[unit] * (1 if self.kept else count)
        self.calls.clear()

    def largest(self) -> int:
        """Number of parameters that are gathered at once: all, or those outside of the units and the two largest."""
        *units, outside = self.sizes.values()
        return outside + sum(units if self.kept else sorted(units)[-2:])


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
    parameters = list(objective.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    states = optimizer_states(recipe, objective, trained)
    average = bytes_of(trained) if recipe.run.ema else 0
    checkpoint = bytes_of(objective.state_dict().values()) + bytes_of(states) + average
    memory = Counter(parameters=bytes_of(parameters) // shards, optimizer=bytes_of(states) // shards)
    memory["other"] = average // shards + bytes_of(objective.buffers())
    if shards > 1 and bfloat16:
        for parameter in parameters:
            if parameter.ndim:
                parameter.data = parameter.data.bfloat16()  # as they are gathered
    units = Units(objective, kept=bool(recipe.run.keep_gathered))
    meter = Meter(shards)
    kernels = GpuKernels(meter, bfloat16)
    kernels.take_part_in(objective)
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(meter.take_gradient)
    traffic: Counter[tuple[str, Group]] = Counter()
    with as_first_of(processes, per_machine, traffic):
        for batch in batches:
            memory["other"] += take_passes(objective, batch, meter, kernels, units)
    memory += meter.peak
    gradients = 4 * sum(parameter.numel() for parameter in trained)  # float32
    if shards > 1:
        width = 2 if bfloat16 else 4
        memory["gathered weights"] = width * units.largest()
        traffic["allgather_base", Group(shards, min(shards, per_machine))] += width * units.gathered
        traffic.update(reductions(gradients * len(batches), shards, processes, per_machine))
    elif processes > 1:
        memory["gradients"] += gradients  # buckets
        traffic["allreduce", Group(processes, min(processes, per_machine))] += gradients
    return StepCost(memory, meter.flops, meter.moved, traffic, checkpoint)


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


def take_passes(objective: Objective, batch: Batch, meter: Meter, kernels: GpuKernels, units: Units) -> int:
    """Forward and backward pass of a batch; returns the bytes of its inputs."""
    batch = batch.to(META)
    inputs = tensors_in([dict(part.inputs) for part in batch.parts or [batch]])
    meter.ignore([*inputs, *objective.parameters(), *objective.buffers()])
    meter.source = batch.source
    with meter:
        loss = objective(batch)["loss"]
        kernels.casts.clear()
        units.in_backward = True
        loss.backward()
    meter.note_peak()
    kernels.casts.clear()
    units.in_backward = False
    units.end_batch()
    return bytes_of(inputs)


def as_first_of(processes: int, per_machine: int, traffic: Counter[tuple[str, Group]]) -> Any:
    """Context in which tensors and values are gathered from so many processes, which are all like this one."""
    everybody = Group(processes, min(processes, per_machine))

    def reduce(gradient: Tensor) -> None:
        traffic["allreduce", everybody] += bytes_of([gradient])

    def gather(x: Tensor) -> Tensor:
        if processes == 1:
            return x
        gathered = x.repeat(processes, *[1] * (x.ndim - 1))
        traffic["allgather", everybody] += bytes_of([gathered])
        if gathered.requires_grad:
            gathered.register_hook(reduce)
        return gathered

    def gather_ragged(x: Tensor) -> tuple[Tensor, int]:
        return gather(x.detach()), 0

    def gather_values(value: Any) -> list[Any]:
        return [value] * processes

    return mock.patch.multiple(
        parallel,
        world_size=lambda: processes,
        gather=gather,
        gather_ragged=gather_ragged,
        gather_objects=gather_values,
        gather_numbers=gather_values,
    )
