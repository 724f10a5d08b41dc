"""Dry run of a training step on a CPU: the first of any number of processes, without data, weights or a GPU.

`onepeace train --plan` counts memory and FLOPs (onepeace/plan); this runs the sharding itself, by private interfaces of
torch, which any release may change, and also counts what processes exchange and what kernels read and write.

The recipe's own objective, sharding, clipping and optimizer run on tensors without values (torch's FakeTensorMode), in
a process group that answers at once (torch's backend "fake"). Whatever asks a tensor for its value fails here.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from trackers import Group, OperationCounter, PeakTracker, ShardedTracker

from onepeace.cards import CARDS, Card
from onepeace.data.batch import Batch
from onepeace.model import Trained, encoder
from onepeace.plan.plan import bytes_of, planned_batch, planned_config, planned_model, planned_objective
from onepeace.plan.step import KernelsOfCuda
from onepeace.train import parallel
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe
from onepeace.train.setup import build_optimizer
from onepeace.train.step import Stepper

CPU = torch.device("cpu")


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


@dataclass(frozen=True)
class DryRun:
    """What a step of a recipe took."""

    recipe: Recipe
    processes: int
    step: StepCost

    @property
    def flops_per_item(self) -> dict[str, float]:
        """FLOPs by source, including losses and recomputation."""
        flops = dict.fromkeys(self.recipe.data.modalities, 0.0)
        for (source, _), count in self.step.flops.items():
            flops[source] += count * self.processes / self.recipe.batch_size(source)
        return flops


def run_step(recipe: Recipe, processes: int = 1, card: Card = CARDS["h100"], per_machine: int = 8) -> DryRun:
    """A step of the first of so many processes, one GPU each, of which a machine has ``per_machine``."""
    config = planned_config(recipe)
    with as_first_of(processes):
        model = planned_model(recipe, config)
        recipe = with_sharding(recipe, model, card, min(per_machine, processes))
        batches = [planned_batch(recipe, config, model, source).map(_to_meta) for source in recipe.data.modalities]
        with torch.device("meta"):
            objective = planned_objective(recipe, model, batches)
        step = measure_step(recipe, objective, batches, per_machine)
    return DryRun(recipe, processes, step)


def with_sharding(recipe: Recipe, model: Trained, card: Card, per_machine: int) -> Recipe:
    """The recipe with what sharding would choose by the machine: processes that share a copy, and kept weights."""
    run = recipe.run
    if run.parallel != "fsdp":
        return recipe
    keep_gathered = parallel.keeps_gathered(model.sharding_units(), run.keep_gathered, card.memory)
    return replace(recipe, run=replace(run, shard=run.shard or per_machine, keep_gathered=keep_gathered))


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Context in which layers on the CPU compute and save what they would on a GPU."""
    kernels = sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION)
    with KernelsOfCuda(), kernels, mock.patch.object(encoder, "FOLDED", ()):
        yield


def measure_step(recipe: Recipe, objective: Objective, batches: Sequence[Batch], per_machine: int) -> StepCost:
    """Cost of one step of this process, which is the first of the process group.

    Args:
        recipe: the recipe, with ``run.shard`` and ``run.keep_gathered`` set if weights are sharded.
        objective: on the meta device, in training mode; it cannot be used afterwards.
        batches: this process's part of the step.
        per_machine: processes on each machine.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    to_fake = partial(_to_fake, fake)
    objective._apply(to_fake)
    bfloat16 = recipe.run.precision != "float32"
    if objective.sharded:
        parallel.shard(objective, objective.model.sharding_units(), recipe.run, CPU, bfloat16)
    counter = OperationCounter(per_machine)
    objective.register_forward_pre_hook(counter.start_batch)
    with as_on_a_gpu(), fake:
        stepper = make_stepper(recipe, objective, bfloat16)
        fake_batches = [batch.map(to_fake) for batch in batches]
        tracker = make_tracker(stepper, fake_batches)
        with tracker, counter:
            stepper(1, fake_batches, recipe.optim.lr)
    states = [state for states in stepper.optimizer.state.values() for state in states.values()]
    tensors = [*objective.state_dict().values(), *states, *stepper.average.values()]
    cost = StepCost(tracker.peak(), counter.flops, counter.moved, counter.traffic, checkpoint=bytes_of(tensors))
    if parallel.world_size() > 1 and not objective.sharded:
        _add_ddp(cost, objective, per_machine)
    return cost


def _to_meta(tensor: Tensor) -> Tensor:
    """Without memory, unless its values decide on lengths."""
    return tensor.to("meta") if tensor.is_floating_point() else tensor


def _to_fake(mode: FakeTensorMode, tensor: Tensor) -> Tensor:
    """A tensor without values, on the CPU."""
    return FakeTensor(mode, tensor.detach().to("meta"), CPU)


def _add_ddp(cost: StepCost, objective: Objective, per_machine: int) -> None:
    """Add what DDP does in C++, which needs values: it copies all gradients into buckets, and reduces those."""
    buckets = bytes_of(parameter for parameter in objective.parameters() if parameter.requires_grad)
    world_size = parallel.world_size()
    cost.memory["gradients"] += buckets
    cost.traffic["allreduce", Group(world_size, min(world_size, per_machine))] += buckets


def make_stepper(recipe: Recipe, objective: Objective, bfloat16: bool) -> Stepper:
    """What takes the step, with the states that the optimizer would make in its first one."""
    optimizer = build_optimizer(recipe, objective)
    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    average = {}
    for name, parameter in objective.model.named_parameters():
        if recipe.run.ema and parameter.requires_grad:
            average[name] = parameter.detach().clone()
    return Stepper(recipe, objective, optimizer, average, CPU, bfloat16)  # not by DDP: see `_add_ddp`


def make_tracker(stepper: Stepper, batches: Sequence[Batch]) -> PeakTracker:
    """Tracker that knows all tensors there are before the step."""
    tensors = list(stepper.average.values())
    for batch in batches:
        for part in batch.parts or [batch]:
            for inputs in part.inputs.values():
                tensors += inputs.values()
    if stepper.objective.sharded:
        sharded = ShardedTracker(stepper.objective, stepper.optimizer)
        sharded.track_inputs(tuple(tensors))
        return sharded
    tracker = PeakTracker()
    tracker.track_external(stepper.objective, stepper.optimizer, *tensors)
    tracker.track_gradients(stepper.objective)
    return tracker


@contextmanager
def as_first_of(count: int) -> Iterator[None]:
    """Context in which this process acts as the first of ``count``, although there are no others."""
    if count == 1:
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=count)

    def from_all(value: Any) -> list[Any]:
        return [value] * count  # the others are like this one

    try:
        with mock.patch.multiple(parallel, gather_objects=from_all, gather_numbers=from_all):
            yield
    finally:
        dist.destroy_process_group()
