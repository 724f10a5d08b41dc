"""Plan of a run: parameters, bytes and FLOPs, from the recipe alone. Nothing is allocated, no data is read.

Bytes of weights, gradients, AdamW's states and what processes exchange are exact: see `held_bytes`. Activations and
FLOPs are measured: the objective runs forward and backward on fake tensors (measure.py), over items of the largest size
(``processors.text.max_tokens``, ``processors.audio.max_seconds``), with one block and with two: each further one costs
as much as the second. Beyond a few items, bytes grow linearly and FLOPs with the square of their number, as the losses
compare them. Weights cast to bfloat16 and what losses keep are part of the activations; the contrastive loss finds its
negatives in this process only, which is less than 1 % of the FLOPs.

Not counted: work space of kernels and what the allocator cannot use (leave a tenth or more), outside teachers.
"""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onepeace.config import Config, read_yaml, write_config
from onepeace.cost.items import PlannedData, largest_items, pair_batch
from onepeace.cost.measure import Cost, step_cost
from onepeace.cost.parts import part_of
from onepeace.errors import UserError
from onepeace.hub.architectures import build_encoder
from onepeace.layers.attention import SelfAttention
from onepeace.model import Trained
from onepeace.train.folder import model_folder
from onepeace.train.lora import choose_trained
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe, read_recipe
from onepeace.train.setup import prepare_terms
from onepeace.train.start import make_config

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

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True)
class Plan:
    """See the module's docstring."""

    recipe: Recipe
    processes: int
    parameters: dict[str, tuple[int, int]]
    """By part of the model: all, and those that train."""
    items: dict[str, int]
    """Items in a step of each pair, over all processes."""
    memory: dict[str, Memory]
    """By way, "ddp" or "fsdp"."""
    flops_per_item: dict[str, int]
    """By pair, losses and what is computed twice included."""

    @property
    def file(self) -> int:
        """Bytes of a checkpoint."""
        total, trained = (sum(column) for column in zip(*self.parameters.values(), strict=True))
        return 4 * (total + (2 if self.recipe.run.ema is None else 3) * trained)

    @property
    def flops_per_step(self) -> int:
        total = sum(self.items[pair] * flops for pair, flops in self.flops_per_item.items())
        return total // len(self.items) if self.recipe.data.pairs == "in_turn" else total

    @property
    def flops(self) -> int:
        """FLOPs of the whole run."""
        return self.recipe.schedule.steps * self.flops_per_step


def make_plan(recipe: Recipe, processes: int = 1, folder: Path | None = None) -> Plan:
    """Plan of a recipe.

    Args:
        processes: how many devices share a step.
        folder: where the recipe lies, beside the one whose run it starts from.
    """
    config = planned_config(recipe, folder)
    model = planned_model(recipe, config)
    items = {name: recipe.batch_size(name) for name in recipe.data.modalities}
    steps = {name: measured(recipe, config, name, ceil(count / processes)) for name, count in items.items()}
    peak = max(cost.peak_bytes for cost in steps.values())
    return Plan(
        recipe=recipe,
        processes=processes,
        parameters=parameter_counts(model),
        items=items,
        memory={way: Memory._make([*held, peak]) for way, held in held_bytes(model, recipe, processes).items()},
        flops_per_item={name: cost.flops for name, cost in steps.items()},
    )


def planned_config(recipe: Recipe, folder: Path | None = None) -> Config:
    """The model's configuration. A run that ``model.from`` names and that is not there yet is told by its recipe.

    That is the recipe in `folder` whose ``run.out`` it is; without one, ``model.size`` tells.
    """
    start = recipe.model.get("from")
    if start is None or (model_folder(start) / "config.yaml").exists():
        return make_config(recipe)
    for path in sorted(folder.glob("*.yaml")) if folder else ():
        if (read_yaml(path).get("run") or {}).get("out") == start:
            with TemporaryDirectory() as made:
                write_config(planned_config(read_recipe(path), folder), Path(made) / "config.yaml")
                return make_config(replace(recipe, model={**recipe.model, "from": made}))
    if "size" not in recipe.model:
        raise UserError(
            f"model.from {start} is not there, nor a recipe beside this one whose run.out it is; add model.size=... to "
            "plan without it"
        )
    return make_config(replace(recipe, model={key: value for key, value in recipe.model.items() if key != "from"}))


def planned_model(recipe: Recipe, config: Config) -> Trained:
    """The model on the meta device, with adapters and frozen as the recipe says."""
    with torch.device("meta"):
        model = build_encoder(config)
    choose_trained(model, recipe)
    return model


def measured(recipe: Recipe, config: Config, source: str, share: int) -> Cost:
    """Bytes at the peak of a step, and FLOPs of each item, where a process has a share of the items of a source.

    From steps over a few items of a model with one block, and one with two: each further block costs as much as the
    second.
    """
    chunks = recipe.run.grad_cache_chunks
    chunk = ceil(share / chunks)
    few, parts = min(chunk, MEASURED), min(chunks, 2)
    depth = getattr(config.model, "depth", 0)
    # Heads that read the outputs of some blocks need all of them.
    if depth <= 2 or any(head.get("blocks") for head in config.model.heads.values()):
        depth = 0
    one, two = (replace(config, model=replace(config.model, depth=n)) if depth else config for n in (1, 2))
    try:
        planned_model(recipe, one)
    except UserError:  # freeze or lora name a block that is not there then
        one, depth = config, 0
    small = step(recipe, one, source, few, parts)
    times, peak, flops, further = chunk * chunks / (few * parts), float(small.peak_bytes), float(small.flops), 0
    if depth:
        deeper = step(recipe, two, source, few, parts)
        # Weights that learn are cast once for all items.
        matrices = [p for p in planned_model(recipe, two).blocks[-1].parameters() if p.requires_grad and p.ndim > 1]
        cast = 0 if recipe.run.precision == "float32" else 2 * sum(p.numel() for p in matrices)
        peak += (depth - 1) * (cast + (deeper.peak_bytes - small.peak_bytes - cast) * chunk / few)
        further = (depth - 1) * (deeper.flops - small.flops)
    if chunks > 2:  # of the items of other chunks only what the losses need is kept
        kept = step(recipe, one, source, few, 3).peak_bytes - small.peak_bytes
        peak += (chunks - 2) * chunk * kept / few
    if times > 1:
        large = step(recipe, one, source, 2 * few, parts)
        peak += (chunk - few) * (large.peak_bytes - small.peak_bytes) / few
        if any(options.term == "names" for options in recipe.terms):  # which reads texts of its own in each step
            flops += (times - 1) * (large.flops - small.flops)
        else:  # a t + b t^2 through both
            pairs = large.flops / 2 - small.flops
            flops = times * (small.flops - pairs) + times**2 * pairs
    return Cost(round((flops + times * further) / (chunk * chunks)), round(peak))


def step(recipe: Recipe, config: Config, source: str, items: int, chunks: int) -> Cost:
    """Cost of a step of so many chunks, each of so many items of a source."""
    model = planned_model(recipe, config)
    model.set_grad_checkpointing(recipe.run.checkpoint_activations)
    keep_as_on_a_gpu(model)
    inputs = largest_items(config, recipe.data.modalities[source], items * chunks)
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


def parameter_counts(model: Trained) -> dict[str, tuple[int, int]]:
    """By part of the model: parameters, and those that train."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        total, trained = counts.get(part := part_of(name), (0, 0))
        counts[part] = (total + parameter.numel(), trained + parameter.numel() * parameter.requires_grad)
    return counts


def held_bytes(model: Trained, recipe: Recipe, processes: int) -> dict[str, tuple[int, ...]]:
    """By way: bytes of parameters, gradients, optimizer, average, and what the processes exchange.

    All is float32: 4 bytes for each parameter, for its gradient and its average where it trains, 8 for AdamW; under
    fsdp each process holds a share. ddp has buckets in which gradients travel; fsdp gathers what is no block, and of
    the blocks the one that computes and the next, with their gradients.
    """
    blocks = [sum(p.numel() * (1 + p.requires_grad) for p in block.parameters()) for block in model.blocks]
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = (4 * total, 4 * trained, 8 * trained, 4 * trained * (recipe.run.ema is not None))
    gathered = total + trained - sum(blocks) + 2 * max(blocks, default=0)
    several = processes > 1
    return {
        "ddp": (*whole, 4 * trained * several),
        "fsdp": (*(ceil(count / processes) for count in whole), 4 * gathered * several),
    }
