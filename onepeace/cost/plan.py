"""What a run will take: parameters, bytes and FLOPs, from the recipe alone. Nothing is allocated, no data is read.

Bytes of one process, P parameters of which T train, N processes, all float32:

    parameters 4 P, gradients 4 T, AdamW 8 T, average of the weights 4 T     (each / N under fsdp)
    ddp       4 T more: the buckets in which gradients travel
    fsdp      4 (root + 2 blocks) parameters gathered, and their gradients: what is no block stays gathered, of the
              blocks one computes while the next one arrives
    file      4 (P + 2 T), and 4 T with an average

Activations and FLOPs are measured: the objective runs forward and backward on fake tensors (dry_run.py), over items of
the largest size (``processors.text.max_tokens``, ``processors.audio.max_seconds``). Beyond a few items, bytes grow
linearly and FLOPs with the square of their number, as the losses compare them. Weights cast to bfloat16 and what losses
keep are part of the activations; the contrastive loss finds its negatives in this process only, which is less than
1 % of the FLOPs.

Not counted: work space of kernels and what the allocator cannot use (leave a tenth or more), outside teachers.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from onepeace.config import Config, read_yaml, write_config
from onepeace.cost.dry_run import DryRun, as_on_a_gpu, fake_module, step_cost
from onepeace.cost.items import PlannedData, largest_items, pair_batch
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
    memory: dict[tuple[str, bool], Memory]
    """By way ("ddp", "fsdp") and whether activations are checkpointed."""
    chosen: tuple[str, bool]
    """What the recipe says."""
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
    chosen = (recipe.run.parallel, recipe.run.checkpoint_activations)
    # Blocks that can be checkpointed are what not every architecture has.
    activations = dict.fromkeys((False, True) if hasattr(model, "set_grad_checkpointing") else (False,), 0)
    items, flops = {}, {}
    for name in recipe.data.modalities:
        items[name] = recipe.batch_size(name)
        share = ceil(items[name] / processes)
        for checkpointed in activations:
            peak, each = dry_steps(recipe, config, name, share, checkpointed, on_gpu)
            activations[checkpointed] = max(activations[checkpointed], peak)
            if checkpointed == chosen[1]:
                flops[name] = each
    held = held_bytes(model, recipe.run.ema is not None, processes)
    counts = parameter_counts(model)
    total, trained = (sum(column) for column in zip(*counts.values(), strict=True))
    return Plan(
        parameters=counts,
        items=items,
        chunks=recipe.run.grad_cache_chunks,
        processes=processes,
        dtype=torch.float32 if recipe.run.precision == "float32" else torch.bfloat16,
        memory={(way, again): Memory(*held[way], peak) for way in WAYS for again, peak in activations.items()},
        chosen=chosen,
        file=4 * (total + (3 if recipe.run.ema is not None else 2) * trained),
        flops_per_item=flops,
        steps=recipe.schedule.steps,
        in_turn=recipe.data.pairs == "in_turn",
    )


def process_memory(recipe: Recipe, on_gpu: bool = True, at_most: float = inf) -> int:
    """Bytes of one process that trains alone as the recipe says, from one dry step of a few items: rougher than
    `make_plan` and sooner told, as all that is alive at the peak is taken to grow with the items.

    Args:
        at_most: where parameters, gradients and optimizer are more than that, their bytes alone are told.
    """
    config = planned_config(recipe)
    held = sum(held_bytes(planned_model(recipe, config), recipe.run.ema is not None, 1)["ddp"])
    if held > at_most:
        return held
    whole = replace(recipe, run=replace(recipe.run, grad_cache_chunks=1))
    peaks = []
    for name in recipe.data.modalities:
        items = ceil(recipe.batch_size(name) / recipe.run.grad_cache_chunks)
        few = min(items, MEASURED)
        peak, _ = dry_steps(whole, config, name, few, recipe.run.checkpoint_activations, on_gpu)
        peaks.append(ceil(peak / few * items))
    return held + max(peaks)


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


def dry_steps(
    recipe: Recipe, config: Config, source: str, share: int, checkpointed: bool, on_gpu: bool
) -> tuple[int, int]:
    """Bytes at the peak and FLOPs of each item, of a share of a pair's items: from dry steps over few of them."""
    chunks, pair = recipe.run.grad_cache_chunks, recipe.data.modalities[source]
    chunk = ceil(share / chunks)
    few, few_chunks = min(chunk, MEASURED), min(chunks, 2)
    measured, share = few * few_chunks, chunk * chunks

    def step(chunk: int, chunks: int) -> DryRun:
        """A step of so many chunks, each of so many items."""
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
        model = planned_model(recipe, config)
        if checkpointed:
            model.set_grad_checkpointing()
        items = largest_items(config, pair, chunk * chunks)
        for key in set(pair) & set(recipe.data.stem_views):  # computed once, before the steps
            raw = {name: tensor.to("meta") for name, tensor in items[key].items()}
            with torch.no_grad():
                items[key] = {"features": torch.zeros(model.adapters[key].stem_features(raw).shape)}
        batch = pair_batch(recipe, model, source, items, torch.Generator().manual_seed(0))
        prepared = prepare_terms(PlannedData(recipe, batch.keys))
        with torch.device("meta"):
            objective = Objective(model, recipe.terms, prepared, chunks, recipe.run.max_padding)
        with as_on_a_gpu() if on_gpu else nullcontext():
            return step_cost(fake_module(objective.train(), fakes), batch, fakes, recipe.run.precision != "float32")

    small = step(few, few_chunks)
    peak, flops = small.peak, small.flops / measured
    if chunks > 2:  # of the items of other chunks only what the losses need is kept
        peak += round((chunks - 2) * chunk * (step(few, 3).peak - small.peak) / few)
    # FLOPs are asked for of what the recipe chose; an item has some of its own, and some for each of the others.
    if chunk > few or (share > measured and checkpointed == recipe.run.checkpoint_activations):
        large = step(2 * few, few_chunks)
        # What each item and each pair of items costs, and the step itself where a term does more than look at items.
        third = step(3 * few, few_chunks).flops if any(options.term == "names" for options in recipe.terms) else 0
        counts = [measured, 2 * measured, 3 * measured if third else 0]
        polynomial = np.polyfit(np.array(counts) / measured, [small.flops, large.flops, third], 2)
        flops = float(np.polyval(polynomial, share / measured)) / share
        peak += round((chunk - few) * (large.peak - small.peak) / few)
    return peak, round(flops)


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
