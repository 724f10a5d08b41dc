"""Plan of a run: parameters, bytes and FLOPs, from the recipe alone. Nothing is allocated, no data is read.

Weights, gradients, AdamW's states and what processes exchange are counted. Activations and FLOPs are those of a step on
fake tensors (measure.py): the items of one process, each as large as its processor lets it be, in a model of one block
and of two. Each further block costs as much as the second; of more than `MEASURED` items, each half of so many costs as
much as the second. Weights cast to bfloat16 and what losses keep are part of the activations; the contrastive loss
finds its negatives in this process only, which is less than 1 % of the FLOPs.

Not counted: outside teachers, losses of task heads (those over every pixel are large), and work space of kernels and
what the allocator cannot use, for which `MARGIN` is added.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

import torch

from onepeace.config import Config
from onepeace.cost.inputs import largest_items, pair_batch, planned_objective, rows_of_an_item
from onepeace.cost.measure import Cost, step_cost
from onepeace.errors import UserError
from onepeace.hub.architectures import build_encoder
from onepeace.hub.registry import find
from onepeace.model import Trained
from onepeace.train.folder import model_folder
from onepeace.train.lora import choose_trained
from onepeace.train.recipe import Recipe
from onepeace.train.start import make_config

MEASURED = 32
"""Items of a step that is measured, at most: losses that compare all with all take their time with more."""
MARGIN = 1.1
"""Memory that is needed over what is counted."""


class Memory(NamedTuple):
    """Bytes of one process."""

    states: int
    """Weights, gradients, AdamW's two moments, and averaged weights."""
    exchange: int
    """Buckets of ddp; what fsdp gathers."""
    activations: int
    """At the peak of a step."""

    @property
    def needed(self) -> int:
        """The sum, with `MARGIN`."""
        return round(MARGIN * sum(self))


@dataclass(frozen=True)
class Plan:
    """See the module's docstring."""

    recipe: Recipe
    processes: int
    parameters: int
    trained: int
    """Parameters that learn."""
    memory: Memory
    flops_per_item: dict[str, float]
    """By source, losses and what is computed twice included."""

    @property
    def file(self) -> int:
        """Bytes of a checkpoint."""
        return 4 * (self.parameters + (2 if self.recipe.run.ema is None else 3) * self.trained)

    @property
    def flops_per_step(self) -> float:
        return sum(self.recipe.batch_size(source) * flops for source, flops in self.flops_per_item.items())


def make_plan(recipe: Recipe, processes: int = 1) -> Plan:
    """Plan of a recipe, whose steps so many devices share."""
    config = planned_config(recipe)
    model = planned_model(recipe, config)
    shares = {name: ceil(recipe.batch_size(name) / processes) for name in recipe.data.modalities}
    costs = {name: measured(recipe, config, name, share) for name, share in shares.items()}
    return Plan(
        recipe=recipe,
        processes=processes,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        memory=memory_of(model, recipe, processes, round(max(cost.peak_bytes for cost in costs.values()))),
        flops_per_item={name: cost.flops for name, cost in costs.items()},
    )


def planned_config(recipe: Recipe) -> Config:
    """The model's configuration; by ``model.size`` of a start that is not there yet, or would be downloaded."""
    start = recipe.start
    is_local = start.source is not None and (start.size is None or find(start.source) is None)
    if start.source is None or (is_local and (model_folder(start.source) / "config.yaml").exists()):
        return make_config(recipe)
    if start.size is None:
        raise UserError(f"model.from {start.source} is not there; add model.size=... to plan without it")
    return make_config(replace(recipe, model={key: value for key, value in recipe.model.items() if key != "from"}))


def planned_model(recipe: Recipe, config: Config) -> Trained:
    """The model on the meta device, with adapters and frozen as the recipe says."""
    with torch.device("meta"):
        model = build_encoder(config, "a plan")
    choose_trained(model, recipe)
    return model


def measured(recipe: Recipe, config: Config, source: str, share: int) -> Cost:
    """Bytes at the peak of a step, and FLOPs of each item, where a process has a share of the items of a source."""
    depth = getattr(config.model, "depth", 1)
    # Heads that read the outputs of some blocks need all of them, and so do patterns that name a block.
    if depth > 2 and not any(head.get("blocks") for head in config.model.heads.values()):
        one, two = (replace(config, model=replace(config.model, depth=few)) for few in (1, 2))
        try:
            small, large = (of_all(recipe, few, source, share) for few in (one, two))
            return Cost(*(low + (depth - 1) * (high - low) for low, high in zip(small, large, strict=True)))
        except UserError:
            pass
    return of_all(recipe, config, source, share)


def of_all(recipe: Recipe, config: Config, source: str, share: int) -> Cost:
    """The same of a model of this configuration: of many items, what follows from fewer."""
    items = ceil(share / recipe.run.grad_cache_chunks)
    if items <= MEASURED:
        return step(recipe, config, source, items)
    half, whole = (step(recipe, config, source, few) for few in (MEASURED // 2, MEASURED))
    more = 2 * (items / MEASURED - 1)  # halves; FLOPs of an item grow with those that it is compared with
    return Cost(*(high + more * (high - low) for low, high in zip(half, whole, strict=True)))


def step(recipe: Recipe, config: Config, source: str, items: int) -> Cost:
    """The same of a step of so many items, or of so many in each chunk."""
    chunks = min(recipe.run.grad_cache_chunks, 2)  # of the items of other chunks only what the losses need is kept
    items *= chunks
    model = planned_model(recipe, config)
    model.set_grad_checkpointing(recipe.run.checkpoint_activations)
    count = items * rows_of_an_item(config.model)
    inputs = {
        key: {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in one.items()}
        for key, one in largest_items(config, recipe.data.modalities[source], 1).items()
    }
    for key in set(inputs) & set(recipe.data.stem_views):  # computed once, before the steps
        raw = {name: tensor.to("meta") for name, tensor in inputs[key].items()}
        inputs[key] = {"features": torch.zeros(1).expand(model.adapters[key].stem_features(raw).shape)}
    batch = pair_batch(recipe, model, source, inputs, torch.Generator().manual_seed(0))
    with torch.device("meta"):
        objective = planned_objective(recipe, model, batch, chunks, recipe.run.max_padding)
    cost = step_cost(objective.train(), batch, recipe.run.precision != "float32")
    return cost._replace(flops=cost.flops / items)


def memory_of(model: Trained, recipe: Recipe, processes: int, activations: int) -> Memory:
    """Memory of a process.

    All is float32: 4 bytes for each parameter, 12 more for its gradient and AdamW where it trains, 4 for its average;
    under fsdp each process holds a share. ddp has buckets in which gradients travel; fsdp gathers what is no block,
    and of the blocks the one that computes and the next, with their gradients.
    """
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = 4 * total + (12 if recipe.run.ema is None else 16) * trained
    if processes == 1:
        return Memory(states, 0, activations)
    if recipe.run.parallel == "ddp":
        return Memory(states, 4 * trained, activations)
    blocks = [sum(p.numel() * (1 + p.requires_grad) for p in block.parameters()) for block in model.blocks]
    gathered = total + trained - sum(blocks) + 2 * max(blocks, default=0)
    return Memory(ceil(states / processes), 4 * gathered, activations)
