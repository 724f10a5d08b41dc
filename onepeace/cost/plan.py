"""Plan of a run: parameters, bytes and FLOPs, from the recipe alone. Nothing is allocated, no data is read.

Weights, gradients, AdamW's states and the data exchanged between processes are computed exactly. Activations and FLOPs
are measured on tensors without values (measure.py): a step with the items of one process, each of maximum size, in
models of one and of two blocks; each further block is taken to cost as much as the second. Above `MEASURED` items, the
cost is extrapolated linearly from `MEASURED` // 2 and `MEASURED` items. Copies of weights in bfloat16 and tensors that
losses keep count as activations. The contrastive loss takes negatives from this process only, which is less than 1 % of
the FLOPs.

Not counted: teachers, losses of task heads (large for those over every pixel), work space of kernels and waste of the
allocator; `MARGIN` is added for the last two.
"""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch

from onepeace.config import SIZES, Config
from onepeace.cost.inputs import largest_items, pair_batch, planned_objective, rows_of_an_item
from onepeace.cost.measure import Cost, step_cost
from onepeace.errors import UserError, one_line
from onepeace.files.cache import cache_folder
from onepeace.hub.architectures import build_encoder
from onepeace.hub.registry import find
from onepeace.layers.recompute import set_recompute
from onepeace.model import Trained
from onepeace.train.folder import model_folder
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import make_config
from onepeace.train.recipe import Recipe

MEASURED = 32
"""Maximum number of items in a measured step: losses that compare all pairs are slow with more."""
MARGIN = 1.1
"""Factor on the counted memory."""


class Memory(NamedTuple):
    """Bytes of one process."""

    states: int
    """Weights, gradients, AdamW's two moments, and averaged weights."""
    exchange: int
    """Gradient buckets of ddp, or the parameters and gradients gathered by fsdp."""
    activations: int
    """Activations at the peak of a step."""

    @property
    def needed(self) -> int:
        """The sum, with `MARGIN`."""
        return round(MARGIN * sum(self))


@dataclass(frozen=True)
class Plan:
    """Plan of a run; see the module's docstring."""

    recipe: Recipe
    processes: int
    parameters: int
    trained: int
    """Number of trained parameters."""
    memory: Memory
    flops_per_item: dict[str, float]
    """FLOPs by source, including losses and recomputation."""

    @property
    def file(self) -> int:
        """Bytes of a checkpoint."""
        return 4 * (self.parameters + (2 if self.recipe.run.ema is None else 3) * self.trained)

    @property
    def flops_per_step(self) -> float:
        return sum(self.recipe.batch_size(source) * flops for source, flops in self.flops_per_item.items())


def make_plan(recipe: Recipe, processes: int = 1) -> Plan:
    """Plan of a recipe for a number of processes, one device each.

    Raises:
        UserError: a start that is not on this machine; options of the model or of its processors that do not fit.
    """
    config = planned_config(recipe)
    shares = {name: ceil(recipe.batch_size(name) / processes) for name in recipe.data.modalities}
    try:
        model = planned_model(recipe, config)
        costs = {name: cost_of_depth(recipe, config, name, share) for name, share in shares.items()}
    except ValueError as error:  # of a stem, or of an item that is too large
        raise UserError(f"the recipe's model and processors do not fit together: {one_line(error)}") from error
    return Plan(
        recipe=recipe,
        processes=processes,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        memory=memory_of(model, recipe, processes, round(max(cost.peak_bytes for cost in costs.values()))),
        flops_per_item={name: cost.flops for name, cost in costs.items()},
    )


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
    return make_config(replace(recipe, model={key: value for key, value in recipe.model.items() if key != "from"}))


def planned_model(recipe: Recipe, config: Config) -> Trained:
    """The model on the meta device, with the adapters and frozen parameters of the recipe."""
    with torch.device("meta"):
        model = build_encoder(config, "a plan")
    add_lora_and_freeze(model, recipe)
    return model


def cost_of_depth(recipe: Recipe, config: Config, source: str, share: int) -> Cost:
    """Cost of a step of one process, with FLOPs per item; extrapolated over the depth."""
    depth = getattr(config.model, "depth", 1)
    # Heads that read the outputs of certain blocks need the full depth, and so do patterns that name a block.
    if depth > 2 and not any(head.get("blocks") for head in config.model.heads.values()):
        one, two = (replace(config, model=replace(config.model, depth=few)) for few in (1, 2))
        try:
            small, large = (cost_of_items(recipe, few, source, share) for few in (one, two))
            return Cost(*(low + (depth - 1) * (high - low) for low, high in zip(small, large, strict=True)))
        except UserError:
            pass
    return cost_of_items(recipe, config, source, share)


def cost_of_items(recipe: Recipe, config: Config, source: str, share: int) -> Cost:
    """Cost for all items of a process, extrapolated from fewer if there are more than `MEASURED`."""
    items = ceil(share / recipe.run.grad_cache_chunks)
    if items <= MEASURED:
        return measured_cost(recipe, config, source, items)
    half, whole = (measured_cost(recipe, config, source, few) for few in (MEASURED // 2, MEASURED))
    more = 2 * (items / MEASURED - 1)  # in halves; FLOPs per item grow with the number of items it is compared with
    return Cost(*(high + more * (high - low) for low, high in zip(half, whole, strict=True)))


def measured_cost(recipe: Recipe, config: Config, source: str, items: int) -> Cost:
    """Measured cost of a step with ``items`` items, or ``items`` in each chunk."""
    chunks = min(recipe.run.grad_cache_chunks, 2)  # of further chunks, only the tensors that the losses need are kept
    items *= chunks
    model = planned_model(recipe, config)
    set_recompute(model, recipe.run.recompute)
    count = items * rows_of_an_item(config.model)
    inputs = {
        key: {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in one.items()}
        for key, one in largest_items(config, recipe.data.modalities[source], 1).items()
    }
    for key in set(inputs) & set(recipe.data.stem_views):  # computed once, before the steps
        raw = {name: tensor.to("meta") for name, tensor in inputs[key].items()}
        inputs[key] = {"features": torch.zeros(1).expand(model.adapters[key].stem_features(raw).shape)}
    batch = pair_batch(recipe, model, source, inputs).split(chunks, model.adapters)
    with torch.device("meta"):
        objective = planned_objective(recipe, model, batch, recipe.run.max_padding)
    cost = step_cost(objective.train(), batch, recipe.run.precision != "float32")
    return cost._replace(flops=cost.flops / items)


def memory_of(model: Trained, recipe: Recipe, processes: int, activations: int) -> Memory:
    """Memory of a process.

    All is float32: 4 bytes per parameter, 12 more for gradient and AdamW's moments if it is trained, 4 for its average;
    under fsdp each process holds a share. ddp adds buckets of gradients; fsdp gathers the parameters outside the
    blocks, and those of the current and the next block, with their gradients.
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
