"""Plan of a run: parameters, bytes and FLOPs, from the recipe alone. Nothing is allocated, no data is read.

Bytes of weights, gradients, AdamW's states and what processes exchange are exact: see `memory_by_way`. Activations and
FLOPs are measured: the objective runs forward and backward on fake tensors (measure.py), over a few items of the
largest size (``processors.text.max_tokens``, ``processors.audio.max_seconds``), with one block and with two: each
further one costs as much as the second. Beyond a few items, bytes grow linearly with their number. Weights cast to
bfloat16 and what losses keep are part of the activations; the contrastive loss finds its negatives in this process
only, which is less than 1 % of the FLOPs.

Not counted: work space of kernels and what the allocator cannot use (leave a tenth or more), outside teachers.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config import Config
from onepeace.cost.measure import Cost, PlannedData, largest_items, pair_batch, rows_of_an_item, step_cost
from onepeace.errors import UserError
from onepeace.hub.architectures import build_encoder
from onepeace.hub.registry import find
from onepeace.layers.attention import SelfAttention
from onepeace.model import Trained
from onepeace.train.folder import model_folder
from onepeace.train.lora import choose_trained
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe
from onepeace.train.start import make_config
from onepeace.train.training_data import prepare_terms

MEASURED = 8
"""Items of a dry step, at most twice as many: so many that activations, not gradients, make the peak."""


class Memory(NamedTuple):
    """Bytes of one process."""

    parameters: int
    gradients: int
    optimizer: int
    average: int
    exchange: int
    """Buckets of ddp; what fsdp gathers."""
    activations: int
    """At the peak of a step."""


@dataclass(frozen=True)
class Plan:
    """See the module's docstring."""

    recipe: Recipe
    processes: int
    parameters: int
    trained: int
    """Parameters that learn."""
    items: dict[str, int]
    """Items in a step of each pair, over all processes."""
    memory: dict[str, Memory]
    """By way, "ddp" or "fsdp"."""
    flops_per_item: dict[str, int]
    """By pair, losses and what is computed twice included."""

    @property
    def file(self) -> int:
        """Bytes of a checkpoint."""
        return 4 * (self.parameters + (2 if self.recipe.run.ema is None else 3) * self.trained)

    @property
    def flops_per_step(self) -> int:
        return sum(self.items[pair] * flops for pair, flops in self.flops_per_item.items())


def make_plan(recipe: Recipe, processes: int = 1) -> Plan:
    """Plan of a recipe, whose steps so many devices share."""
    config = planned_config(recipe)
    model = planned_model(recipe, config)
    items = {name: recipe.batch_size(name) for name in recipe.data.modalities}
    steps = {name: measured(recipe, config, name, ceil(count / processes)) for name, count in items.items()}
    return Plan(
        recipe=recipe,
        processes=processes,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        items=items,
        memory=memory_by_way(model, recipe, processes, max(cost.peak_bytes for cost in steps.values())),
        flops_per_item={name: cost.flops for name, cost in steps.items()},
    )


def planned_config(recipe: Recipe) -> Config:
    """The model's configuration; by ``model.size``, if given, where ``model.from`` is not there yet, or is a released
    model, which would be downloaded."""
    start = recipe.start
    if start.source is None:
        return make_config(recipe)
    released = start.size is not None and find(start.source) is not None
    if not released and (model_folder(start.source) / "config.yaml").exists():
        return make_config(recipe)
    if start.size is None:
        raise UserError(f"model.from {start.source} is not there; add model.size=... to plan without it")
    return make_config(replace(recipe, model={key: value for key, value in recipe.model.items() if key != "from"}))


def planned_model(recipe: Recipe, config: Config) -> Trained:
    """The model on the meta device, with adapters and frozen as the recipe says."""
    with torch.device("meta"):
        model = build_encoder(config)
    choose_trained(model, recipe)
    return model


def measured(recipe: Recipe, config: Config, source: str, share: int) -> Cost:
    """Bytes at the peak of a step, and FLOPs of each item, where a process has a share of the items of a source."""
    chunks = min(recipe.run.grad_cache_chunks, 2)  # of the items of other chunks only what the losses need is kept
    items = ceil(share / recipe.run.grad_cache_chunks)
    few = min(items, MEASURED)
    depth, one = getattr(config.model, "depth", 1), config
    # Heads that read the outputs of some blocks need all of them, and so do patterns that name a block.
    if depth > 2 and not any(head.get("blocks") for head in config.model.heads.values()):
        one = replace(config, model=replace(config.model, depth=1))
        try:
            planned_model(recipe, one)
        except UserError:
            one = config
    small = step(recipe, one, source, few, chunks)
    peak, flops = float(small.peak_bytes), float(small.flops)
    if items > few:
        large, times = step(recipe, one, source, 2 * few, chunks), items / few
        peak += (times - 1) * (large.peak_bytes - small.peak_bytes)
        of_pairs = max(large.flops / 2 - small.flops, 0)  # losses compare each item with each
        flops += (times - 1) * (large.flops - small.flops) + (times - 1) * (times - 2) * of_pairs
    if one is not config:
        two = replace(config, model=replace(config.model, depth=2))
        deeper = step(recipe, two, source, few, chunks)
        # Weights that learn are cast once for all items.
        matrices = [p for p in planned_model(recipe, two).blocks[-1].parameters() if p.requires_grad and p.ndim > 1]
        cast = 0 if recipe.run.precision == "float32" else 2 * sum(p.numel() for p in matrices)
        peak += (depth - 1) * (cast + (deeper.peak_bytes - small.peak_bytes - cast) * items / few)
        flops += (depth - 1) * (deeper.flops - small.flops) * items / few
    return Cost(round(flops / (items * chunks)), round(peak))


def step(recipe: Recipe, config: Config, source: str, items: int, chunks: int) -> Cost:
    """Cost of a step of so many chunks, each of so many items of a source."""
    model = planned_model(recipe, config)
    model.set_grad_checkpointing(recipe.run.checkpoint_activations)
    keep_as_on_a_gpu(model)
    inputs = largest_items(config, recipe.data.modalities[source], items * chunks * rows_of_an_item(config.model))
    for key in set(inputs) & set(recipe.data.stem_views):  # computed once, before the steps
        raw = {name: tensor.to("meta") for name, tensor in inputs[key].items()}
        with torch.no_grad():
            inputs[key] = {"features": torch.zeros(model.adapters[key].stem_features(raw).shape)}
    batch = pair_batch(recipe, model, source, inputs, torch.Generator().manual_seed(0))
    prepared = prepare_terms(PlannedData(recipe, batch.keys))
    with torch.device("meta"):
        objective = Objective(model, recipe.terms, prepared, chunks, recipe.run.max_padding)
    return step_cost(objective.train(), batch, recipe.run.precision != "float32")


def keep_as_on_a_gpu(model: nn.Module) -> None:
    """Make what the layers of a model keep on this CPU the same as on a GPU."""
    for name, parameter in model.named_parameters():
        # No attention keeps its scores there; here only that whose bias does not learn.
        parameter.requires_grad_(parameter.requires_grad and ".bias_tables." not in name)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # in float32 under autocast
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        elif isinstance(module, SelfAttention):
            # The kernel reads rows of a multiple of 8; torch pads those of others, a copy for each block.
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0], _padded(inputs[1])))


def _padded(bias: Tensor | None) -> Tensor | None:
    if bias is None or bias.shape[-1] % 8 == 0:
        return bias
    bias = bias.to(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else bias
    return F.pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]]


def memory_by_way(model: Trained, recipe: Recipe, processes: int, activations: int) -> dict[str, Memory]:
    """Memory of a process under "ddp" and under "fsdp".

    All is float32: 4 bytes for each parameter, for its gradient and its average where it trains, 8 for AdamW; under
    fsdp each process holds a share. ddp has buckets in which gradients travel; fsdp gathers what is no block, and of
    the blocks the one that computes and the next, with their gradients.
    """
    blocks = [sum(p.numel() * (1 + p.requires_grad) for p in block.parameters()) for block in model.blocks]
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = (4 * total, 4 * trained, 8 * trained, 4 * trained * (recipe.run.ema is not None))
    gathered = total + trained - sum(blocks) + 2 * max(blocks, default=0)
    several = processes > 1
    return {
        "ddp": Memory._make([*held, 4 * trained * several, activations]),
        "fsdp": Memory._make([*(ceil(count / processes) for count in held), 4 * gathered * several, activations]),
    }
