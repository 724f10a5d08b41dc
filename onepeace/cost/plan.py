"""What a run will take: parameters, bytes and FLOPs, from the recipe alone. Nothing is allocated, no data is read.

Bytes of one process, P parameters of which T train, N processes, all float32:

    parameters 4 P, gradients 4 T, AdamW 8 T, average of the weights 4 T     (each / N under fsdp)
    ddp       4 T more: the buckets in which gradients travel
    fsdp      4 (root + 2 blocks) parameters gathered, and their gradients: what is no block stays gathered, of the
              blocks one computes while the next one arrives
    file      4 (P + 2 T), and 4 T with an average

Activations and FLOPs are measured: the objective runs forward and backward on fake tensors (measure.py), over items of
the largest size (``processors.text.max_tokens``, ``processors.audio.max_seconds``), with one block and with two: each
further one costs as much as the second. Beyond a few items, bytes grow linearly and FLOPs with the square of their
number, as the losses compare them. Weights cast to bfloat16 and what losses
keep are part of the activations; the contrastive loss finds its negatives in this process only, which is less than
1 % of the FLOPs.

Not counted: work space of kernels and what the allocator cannot use (leave a tenth or more), outside teachers.
"""

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch

from onepeace.config import Config, read_yaml, write_config
from onepeace.cost.items import PlannedData, largest_items, pair_batch
from onepeace.cost.measure import Run, step_cost
from onepeace.cost.parts import part_of
from onepeace.errors import UserError
from onepeace.hub.architectures import build_encoder
from onepeace.model import Trained
from onepeace.train.folder import model_folder
from onepeace.train.lora import choose_trained
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe, read_recipe
from onepeace.train.setup import prepare_terms
from onepeace.train.start import make_config

WAYS = ("ddp", "fsdp")
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

    parameters: dict[str, tuple[int, int]]
    """By part of the model: all, and those that train."""
    items: dict[str, int]
    """Items in a step of each pair, over all processes."""
    chunks: int
    """In how many chunks a process computes its items."""
    processes: int
    dtype: torch.dtype
    memory: dict[str, Memory]
    """By way, "ddp" or "fsdp"."""
    chosen: str
    """The way of the recipe."""
    checkpointed: bool
    """Whether activations are computed again in the backward pass."""
    file: int
    """Bytes of a checkpoint."""
    flops_per_item: dict[str, int]
    """By pair, losses and what is computed twice included."""
    steps: int
    in_turn: bool
    """Whether a step has items of one pair only."""

    @property
    def flops_per_step(self) -> int:
        total = sum(self.items[pair] * flops for pair, flops in self.flops_per_item.items())
        return total // len(self.items) if self.in_turn else total

    @property
    def flops(self) -> int:
        """Of the whole run."""
        return self.steps * self.flops_per_step


def make_plan(recipe: Recipe, processes: int = 1, folder: Path | None = None, on_gpu: bool = True) -> Plan:
    """What a recipe takes.

    Args:
        processes: how many devices share a step.
        folder: where the recipe lies, beside the one whose run it starts from.
        on_gpu: with the kernels of a GPU; else with those of this CPU.
    """
    config = planned_config(recipe, folder)
    model = planned_model(recipe, config)
    again = recipe.run.checkpoint_activations
    items = {name: recipe.batch_size(name) for name in recipe.data.modalities}
    runs = {
        name: measured(recipe, config, name, ceil(count / processes), again, on_gpu) for name, count in items.items()
    }
    held = held_bytes(model, recipe.run.ema is not None, processes)
    counts = parameter_counts(model)
    total, trained = (sum(column) for column in zip(*counts.values(), strict=True))
    return Plan(
        parameters=counts,
        items=items,
        chunks=recipe.run.grad_cache_chunks,
        processes=processes,
        dtype=torch.float32 if recipe.run.precision == "float32" else torch.bfloat16,
        memory={way: Memory(*held[way], max(run.peak for run in runs.values())) for way in WAYS},
        chosen=recipe.run.parallel,
        checkpointed=recipe.run.checkpoint_activations,
        file=4 * (total + (3 if recipe.run.ema is not None else 2) * trained),
        flops_per_item={name: run.flops for name, run in runs.items()},
        steps=recipe.schedule.steps,
        in_turn=recipe.data.pairs == "in_turn",
    )


def process_memory(recipe: Recipe, on_gpu: bool = True) -> int:
    """Bytes of one process that trains alone as the recipe says."""
    config, again = planned_config(recipe), recipe.run.checkpoint_activations
    held = sum(held_bytes(planned_model(recipe, config), recipe.run.ema is not None, 1)["ddp"])
    peaks = [measured(recipe, config, name, recipe.batch_size(name), again, on_gpu) for name in recipe.data.modalities]
    return held + max(run.peak for run in peaks)


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


def measured(recipe: Recipe, config: Config, source: str, share: int, checkpointed: bool, on_gpu: bool) -> Run:
    """Bytes at the peak of a step, and FLOPs of each item, where a process has a share of the items of a source.

    From steps over a few items of a model with one block, and one with two: each further block costs as much as the
    second.
    """
    chunks = recipe.run.grad_cache_chunks
    chunk = ceil(share / chunks)
    few, steps = min(chunk, MEASURED), min(chunks, 2)
    depth = getattr(config.model, "depth", 0)
    # Heads that read the outputs of some blocks need all of them.
    if depth <= 2 or any(head.get("blocks") for head in config.model.heads.values()):
        depth = 0
    one, two = (replace(config, model=replace(config.model, depth=n)) if depth else config for n in (1, 2))
    try:
        planned_model(recipe, one)
    except UserError:  # freeze or lora name a block that is not there then
        one, depth = config, 0

    def step(own: Config, items: int, parts: int = steps) -> Run:
        """A step of so many parts, each of so many items."""
        return _step(recipe, own, source, items, parts, checkpointed, on_gpu)

    def deeper(shallow: Run, items: int) -> Run:
        """The cost of all blocks but the first."""
        return (
            Run(*((depth - 1) * (b - a) for a, b in zip(shallow, step(two, items), strict=True)))
            if depth
            else Run(0, 0)
        )

    small = step(one, few)
    blocks = deeper(small, few)
    times, peak, flops = chunk * chunks / (few * steps), small.peak + blocks.peak * chunk / few, small.flops + 0.0
    if chunks > 2:  # of the items of other chunks only what the losses need is kept
        peak += (chunks - 2) * chunk * (step(one, few, 3).peak - small.peak) / few
    if times > 1:
        large = step(one, 2 * few)
        peak += (chunk - few) * (large.peak - small.peak) / few
        # What each item and each pair of items costs; where a term also reads something of its own, a step too.
        counts, found = [0, 1, 2], [0, small.flops, large.flops]
        if any(options.term == "names" for options in recipe.terms):
            counts, found = [1, 2, 3], [small.flops, large.flops, step(one, 3 * few).flops]
            further = deeper(large, 2 * few)
            blocks = Run(round(2 * blocks.flops - further.flops + times * (further.flops - blocks.flops)), 0)
        else:
            blocks = Run(round(times * blocks.flops), 0)
        flops = float(np.polyval(np.polyfit(counts, found, 2), times))
    return Run(round((flops + blocks.flops) / (chunk * chunks)), round(peak))


def _step(
    recipe: Recipe, config: Config, source: str, items: int, chunks: int, checkpointed: bool, on_gpu: bool
) -> Run:
    model = planned_model(recipe, config)
    model.set_grad_checkpointing(checkpointed)
    inputs = largest_items(config, recipe.data.modalities[source], items * chunks)
    for key in set(inputs) & set(recipe.data.stem_views):  # computed once, before the steps
        raw = {name: tensor.to("meta") for name, tensor in inputs[key].items()}
        with torch.no_grad():
            inputs[key] = {"features": torch.zeros(model.adapters[key].stem_features(raw).shape)}
    batch = pair_batch(recipe, model, source, inputs, torch.Generator().manual_seed(0))
    prepared = prepare_terms(PlannedData(recipe, batch.keys))
    with torch.device("meta"):
        objective = Objective(model, recipe.terms, prepared, chunks, recipe.run.max_padding)
    return step_cost(objective.train(), batch, recipe.run.precision != "float32", on_gpu)


def parameter_counts(model: Trained) -> dict[str, tuple[int, int]]:
    """By part of the model: parameters, and those that train."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        total, trained = counts.get(part := part_of(name), (0, 0))
        counts[part] = (total + parameter.numel(), trained + parameter.numel() * parameter.requires_grad)
    return counts


def held_bytes(model: Trained, average: bool, processes: int) -> dict[str, tuple[int, int, int, int, int]]:
    """By way: bytes of parameters, gradients, optimizer, average, and what the processes exchange."""
    blocks = [sum(p.numel() * (1 + p.requires_grad) for p in block.parameters()) for block in model.blocks]
    everything = sum(p.numel() * (1 + p.requires_grad) for p in model.parameters())
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = (4 * total, 4 * trained, 8 * trained, 4 * trained * average)
    sharded = tuple(ceil(count / processes) for count in whole)
    gathered = everything - sum(blocks) + 2 * max(blocks, default=0)
    several = processes > 1
    return {"ddp": (*whole, 4 * trained * several), "fsdp": (*sharded, 4 * gathered * several)}  # type: ignore[dict-item]
