"""Plan of a run: what a step takes on the GPUs that it would run on, from the recipe alone.

One step of a process is taken of tensors without values (step.py), over as many items as that process has, each of
maximum size; its time follows from the card's rates. Computation, collectives and reading overlap (FSDP gathers the
next unit while one computes, DDP reduces buckets during the backward pass, workers build batches ahead), so that a step
takes at least as long as the slowest of them. What is not in it: teachers, losses of task heads (large for those over
every pixel), torch.compile, work space of kernels and waste of the allocator; `MARGIN` is added for the last two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from onepeace.cards import CARDS, Card
from onepeace.config import SIZES, Config
from onepeace.data.batch import Batch
from onepeace.device import count_parameters
from onepeace.errors import UserError, one_line
from onepeace.files.atomic import cache_folder
from onepeace.hub.download import RELEASED
from onepeace.layers.recompute import set_recompute
from onepeace.model import Trained
from onepeace.plan.step import StepCost, measure_step
from onepeace.plan.synthetic import largest_items, synthetic_batch, synthetic_objective
from onepeace.train import parallel
from onepeace.train.initial_weights import make_model
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import make_config
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe, model_folder

UTILISATION = 2 / 3
"""Share of a card's peak that products are assumed to reach; a choice, not a measurement, as no GPU was there: with it
the step of image_text_4b takes about as long as its products and its other kernels take by a separate count."""
READER_ITEMS = 365
"""Items that one worker of the reader builds per second, photographs with a caption (docs/results/data.md)."""
RING = {"allgather": 1, "allgather_base": 1, "reduce_scatter_base": 1, "broadcast": 1, "allreduce": 2}
"""Times that each byte goes over a link of every process, but for a share of 1 / processes (NCCL's ring)."""


class StepTime(NamedTuple):
    """Seconds of a step by what takes them."""

    compute: float
    links: float
    """Collectives within a machine."""
    network: float
    """Collectives between machines."""
    reader: float

    @property
    def limit(self) -> str:
        """What limits the step."""
        return max(self._fields, key=lambda name: getattr(self, name))


def step_time(cost: StepCost, recipe: Recipe, processes: int, card: Card) -> StepTime:
    """Estimated time of a step."""
    compute = cost.moved / card.bandwidth
    for (_, dtype), flops in cost.flops.items():
        peak = card.float32 if dtype == torch.float32 else card.bfloat16
        compute += flops / (UTILISATION * peak)
    links = 0.0
    network = 0.0
    for (operation, group), size in cost.traffic.items():
        sent = RING[operation] * size * (group.size - 1) / group.size
        if group.size == group.on_machine:
            links += sent / card.link
        else:  # all adapters of the group's processes on a machine carry its traffic
            network += sent / (card.network * group.on_machine)
    items = sum(recipe.batch_size(source) for source in recipe.data.modalities) / processes
    reader = items / (READER_ITEMS * max(recipe.run.workers, 1))
    return StepTime(compute, links, network, reader)


MARGIN = 1.1
"""Factor on the counted memory."""


@dataclass(frozen=True)
class Plan:
    """Plan of a run; see the module's docstring."""

    recipe: Recipe
    processes: int
    card: Card
    parameters: int
    trained: int
    """Number of trained parameters."""
    step: StepCost
    """What a step takes in each process."""

    @property
    def memory(self) -> int:
        """Bytes that a process needs, with `MARGIN`."""
        return round(MARGIN * self.step.memory.total())

    @property
    def flops_per_item(self) -> dict[str, float]:
        """FLOPs by source, including losses and recomputation."""
        flops = dict.fromkeys(self.recipe.data.modalities, 0.0)
        for (source, _), count in self.step.flops.items():
            flops[source] += count * self.processes / self.recipe.batch_size(source)
        return flops

    @property
    def flops_per_step(self) -> float:
        """FLOPs of all processes."""
        return float(self.processes * self.step.flops.total())


def make_plan(recipe: Recipe, processes: int = 1, card: Card = CARDS["h100"], per_machine: int = 8) -> Plan:
    """Plan of a recipe for a number of processes, one GPU each.

    Args:
        recipe: the recipe.
        processes: number of processes.
        card: the GPU.
        per_machine: GPUs of a machine.

    Raises:
        UserError: a start that is not on this machine; a batch that cannot be shared evenly; options of the model or of
            its processors that do not fit.
    """
    config = planned_config(recipe)
    try:
        model = planned_model(recipe, config)
        recipe = with_sharding(recipe, model, card, min(per_machine, processes))
        parameters = count_parameters(model)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        objective, batches = share_of_step(recipe, config, model, processes)
        step = measure_step(recipe, objective, batches, processes, per_machine)
    except ValueError as error:  # of a stem, or of an item that is too large
        raise UserError(f"the recipe's model and processors do not fit together: {one_line(error)}") from error
    return Plan(recipe=recipe, processes=processes, card=card, parameters=parameters, trained=trained, step=step)


def planned_config(recipe: Recipe) -> Config:
    """The model's configuration; that of ``model.size`` for a ``model.from`` that is not on this machine."""
    start = recipe.start
    if start.source is None or _is_here(start.source):
        return make_config(recipe)
    if start.size is None:
        raise UserError(
            f"model.from {start.source} is not on this machine; to plan without it, give another model.from of the "
            f"same kind, or model.size=... ({', '.join(SIZES)})"
        )
    without_start = {key: value for key, value in recipe.model.items() if key != "from"}
    return make_config(replace(recipe, model=without_start))


def _is_here(source: str) -> bool:
    """Whether ``model.from`` can be read without a download."""
    is_released = source in RELEASED and not Path(source).is_dir()
    is_local = not is_released or (cache_folder() / source).is_dir()
    return is_local and (model_folder(source) / "config.yaml").exists()


def planned_model(recipe: Recipe, config: Config) -> Trained:
    """The model on the meta device, with the adapters, frozen parameters and recomputation of the recipe."""
    model = make_model(recipe, config, empty=True)
    add_lora_and_freeze(model, recipe)
    set_recompute(model, recipe.run.recompute)
    return model


def with_sharding(recipe: Recipe, model: Trained, card: Card, per_machine: int) -> Recipe:
    """The recipe with what sharding would choose by the machine: processes that share a copy, and kept weights."""
    run = recipe.run
    if run.parallel != "fsdp":
        return recipe
    keep_gathered = parallel.keeps_gathered(model.sharding_units(), run.keep_gathered, card.memory)
    return replace(recipe, run=replace(run, shard=run.shard or per_machine, keep_gathered=keep_gathered))


def share_of_step(recipe: Recipe, config: Config, model: Trained, processes: int) -> tuple[Objective, list[Batch]]:
    """The objective on the meta device, and what a process computes of it in a step."""
    batches = [_share(recipe, config, model, source, processes) for source in recipe.data.modalities]
    with torch.device("meta"):
        objective = synthetic_objective(recipe, model, max((batch.keys for batch in batches), key=len))
    return objective.train(), batches


def _share(recipe: Recipe, config: Config, model: Trained, source: str, processes: int) -> Batch:
    """The items of one source that a process has in a step, each of maximum size."""
    count = recipe.batch_size(source)
    if count % processes:
        raise UserError(f"run.batch_size {count} of {source} cannot be shared evenly by {processes} processes")
    rows_of_item = max((head.get("inputs", 1) for head in config.model.heads.values()), default=1)
    rows = count // processes * rows_of_item
    inputs = {}
    for key, item in largest_items(config, recipe.data.modalities[source], 1).items():
        if key in recipe.data.stem_views:  # computed once, before the steps
            item = _features_of(model, key, item)
        inputs[key] = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in item.items()}  # no memory
    batch = synthetic_batch(recipe, source, model, inputs, rows_of_item)
    # Parts are copies: only those of whole numbers, which decide on lengths, take memory.
    for tensors in inputs.values():
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.to("meta")
    return batch.split(recipe.run.grad_cache_chunks, model.adapters)


def _features_of(model: Trained, key: str, item: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The input of an adapter that gets the features of its stem: of the right shape, and without memory."""
    inputs = {name: tensor.to("meta") for name, tensor in item.items()}
    features = model.adapters[key].stem_features(inputs)
    return {"features": torch.zeros(1).expand(features.shape)}


def plan_text(plan: Plan) -> str:
    """The output of ``onepeace train RECIPE --plan``."""
    run = plan.recipe.run
    items = ", ".join(f"{plan.recipe.batch_size(source)} {source}" for source in plan.recipe.data.modalities)
    precision = "float32" if run.precision == "float32" else "bfloat16"
    parallelism = f"fsdp over {run.shard}" if run.shard else run.parallel
    lines = [
        f"{items} a step on {plan.processes} {plan.card.name}",
        f"{precision}, recompute: {run.recompute}, {parallelism}",
        f"{plan.parameters:,} parameters, {plan.trained:,} of them trained",
        "",
    ]
    for name, value in [*_memory_rows(plan), *_traffic_rows(plan), *_time_rows(plan)]:
        lines.append(f"{name:<40}{value:>12}".rstrip())
    if plan.recipe.model.get("heads"):
        lines.append("not counted: losses of the heads")
    return "\n".join(lines)


def _memory_rows(plan: Plan) -> list[tuple[str, str]]:
    rows = [("GB at the peak of a process", "")]
    rows += [(f"  {category}", f"{size / 1e9:.2f}") for category, size in sorted(plan.step.memory.items())]
    rows.append((f"  total and a tenth, of {plan.card.memory / 1e9:.0f}", f"{plan.memory / 1e9:.2f}"))
    rows.append(("GB of a checkpoint", f"{plan.step.checkpoint / 1e9:.2f}"))
    return rows


def _traffic_rows(plan: Plan) -> list[tuple[str, str]]:
    """Bytes by operation, within and between machines."""
    rows = [("GB that a process exchanges in a step", "")]
    for (operation, group), size in sorted(plan.step.traffic.items()):
        where = "in a machine" if group.size == group.on_machine else "between machines"
        rows.append((f"  {operation} of {group.size}, {where}", f"{size / 1e9:.2f}"))
    return rows if plan.processes > 1 else []


def _time_rows(plan: Plan) -> list[tuple[str, str]]:
    """FLOPs, bytes that kernels move, and what follows from them."""
    steps = plan.recipe.schedule.steps
    time = step_time(plan.step, plan.recipe, plan.processes, plan.card)
    rows = [(f"GFLOP of an item, {source}", f"{flops / 1e9:,.1f}") for source, flops in plan.flops_per_item.items()]
    rows.append(("GB that other kernels read and write", f"{plan.step.moved / 1e9:,.1f}"))
    rows.append((f"EFLOP of {steps} steps", f"{steps * plan.flops_per_step / 1e18:.3g}"))
    rows.append((f"seconds, products at {UTILISATION:.0%} of the peak", ""))
    for name, seconds in time._asdict().items():
        rows.append((f"  {name}" + ("  <- limits" if name == time.limit else ""), f"{seconds:.3g}"))
    rows.append((f"days of {steps} steps", f"{steps * max(time) / 86400:.3g}"))
    return rows
