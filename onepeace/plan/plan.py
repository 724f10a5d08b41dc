"""Plan of a run: what a step takes on the GPUs that it would run on, from the recipe alone.

One step of a process is taken on the meta device (step.py), over as many items as that process has, each of maximum
size. What is not in it: teachers, losses of task heads (large for those over every pixel), torch.compile, work space of
kernels and waste of the allocator; `MARGIN` is added for the last two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from onepeace.cards import CARDS, Card
from onepeace.config import SIZES, Config
from onepeace.data.batch import Batch
from onepeace.device import count_parameters
from onepeace.errors import UserError, one_line
from onepeace.files.atomic import cache_folder
from onepeace.hub.download import find
from onepeace.layers.recompute import set_recompute
from onepeace.model import Trained
from onepeace.plan.objective import synthetic_objective
from onepeace.plan.step import StepCost, measure_step
from onepeace.plan.synthetic import largest_items, synthetic_batch
from onepeace.train import parallel
from onepeace.train.initial_weights import make_model
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import make_config
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe, model_folder

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
        return _plan(recipe, config, processes, card, per_machine)
    except ValueError as error:  # of a stem, or of an item that is too large
        raise UserError(f"the recipe's model and processors do not fit together: {one_line(error)}") from error


def _plan(recipe: Recipe, config: Config, processes: int, card: Card, per_machine: int) -> Plan:
    model = planned_model(recipe, config)
    parameters = count_parameters(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    recipe = with_sharding(recipe, model, card, min(per_machine, processes))
    objective, batches = share_of_step(recipe, config, model, processes)
    step = measure_step(recipe, objective, batches, processes, per_machine)
    return Plan(recipe=recipe, processes=processes, card=card, parameters=parameters, trained=trained, step=step)


def planned_config(recipe: Recipe) -> Config:
    """The model's configuration; that of ``model.size`` if ``model.from`` is missing or would be downloaded."""
    start = recipe.start
    if start.source is None:
        return make_config(recipe)
    released = None if Path(start.source).is_dir() else find(start.source)
    is_local = released is None or (start.size is None and (cache_folder() / released).is_dir())
    if is_local and (model_folder(start.source) / "config.yaml").exists():
        return make_config(recipe)
    if start.size is None:
        raise UserError(
            f"model.from {start.source} is not on this machine; to plan without it, give another model.from of the "
            f"same kind, or model.size=... ({', '.join(SIZES)})"
        )
    without_start = {key: value for key, value in recipe.model.items() if key != "from"}
    return make_config(replace(recipe, model=without_start))


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
    batch = synthetic_batch(recipe.data, recipe.mask, model.adapters, inputs, rows_of_item)
    # Parts are copies: only those of whole numbers, which decide on lengths, take memory.
    for tensors in inputs.values():
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                tensors[name] = tensor.to("meta")
    return replace(batch, source=source).split(recipe.run.grad_cache_chunks, model.adapters)


def _features_of(model: Trained, key: str, item: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The input of an adapter that gets the features of its stem: of the right shape, and without memory."""
    inputs = {name: tensor.to("meta") for name, tensor in item.items()}
    features = model.adapters[key].stem_features(inputs)
    return {"features": torch.zeros(1).expand(features.shape)}
