"""Plan of a run: memory, FLOPs and kernels of a step in each process, from the recipe alone.

The recipe's own objective takes its passes over one process's items, each of the largest size, with whole weights and
as if the other processes had the same items (step.py). What the optimizer, an average, DDP and sharding take beside
them is arithmetic over the shapes of the parameters.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onepeace.cards import CARDS, Card
from onepeace.config import SIZES, Config
from onepeace.data.batch import Batch, Inputs
from onepeace.data.masking import draw_masks
from onepeace.device import count_parameters
from onepeace.errors import UserError, one_line
from onepeace.files.atomic import cache_folder
from onepeace.hub.download import RELEASED
from onepeace.hub.resolve import BUNDLED, BUNDLED_NAMES
from onepeace.layers.recompute import set_recompute
from onepeace.model import Trained
from onepeace.plan.step import Meter, as_on_a_gpu, tensors_in
from onepeace.processors.registry import processor_class
from onepeace.special_ids import EOS
from onepeace.train import parallel
from onepeace.train.initial_weights import make_model
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import make_config
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe, model_folder
from onepeace.train.setup import build_objective, build_optimizer
from onepeace.train.teachers import TeacherOptions, TeacherTable
from onepeace.train.term import Term, TermOptions, TrainingData
from onepeace.train.terms.heads import Supervised

MARGIN = 1.1
"""Factor on the counted memory, for the work space of kernels and waste of the allocator."""
NOT_COUNTED = "launches of kernels, exchanges between processes, reading of data"
TEACHER_OUTPUTS = {"features": 1024, "scores": 1000}
"""Widths of what teachers compute."""
NAME_TOKENS = 8
"""Tokens of a name of a class."""


@dataclass(frozen=True)
class Plan:
    """What a run takes; see the module's docstring."""

    recipe: Recipe
    processes: int
    card: Card
    parameters: int
    trained: int
    """Number of trained parameters."""
    memory: dict[str, int]
    """Bytes at the peak of a process, by what they hold."""
    flops: dict[str, int]
    """FLOPs of the products and convolutions of a process by source, those of losses and of recomputation included."""
    kernels: int
    """Kernels that a process launches in a step."""
    checkpoint: int
    """Bytes of a checkpoint."""

    @property
    def peak(self) -> int:
        """Bytes that a process needs, with `MARGIN`."""
        return round(MARGIN * sum(self.memory.values()))

    @property
    def flops_per_item(self) -> dict[str, float]:
        """FLOPs by source."""
        return {source: self.processes * flops / self.recipe.batch_size(source) for source, flops in self.flops.items()}

    @property
    def flops_per_step(self) -> int:
        """FLOPs of all processes."""
        return self.processes * sum(self.flops.values())


def make_plan(recipe: Recipe, processes: int = 1, card: Card = CARDS["h100"], per_machine: int = 8) -> Plan:
    """Plan of a recipe for a number of processes, one GPU each.

    Args:
        per_machine: GPUs of a machine, which share a copy of the weights under fsdp.

    Raises:
        UserError: a start that is not on this machine; a batch that cannot be shared evenly; options of the model or of
            its processors that do not fit.
    """
    config = planned_config(recipe)
    try:
        with parallel.alike(processes):
            model = planned_model(recipe, config)
            batches = [planned_batch(recipe, config, model, source) for source in recipe.data.modalities]
            with torch.device("meta"):
                objective = planned_objective(recipe, model, batches)
            return _count(recipe, objective, batches, card, per_machine)
    except ValueError as error:  # of a stem, or of an item that is too large
        raise UserError(f"the recipe's model and processors do not fit together: {one_line(error)}") from error


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
    if not Path(source).is_dir() and source in RELEASED:
        return (cache_folder() / source).is_dir()
    return source in BUNDLED_NAMES or (model_folder(source) / "config.yaml").exists()


def planned_model(recipe: Recipe, config: Config) -> Trained:
    """The model on the meta device, with the adapters, frozen parameters and recomputation of the recipe."""
    model = make_model(recipe, config, empty=True)
    add_lora_and_freeze(model, recipe)
    set_recompute(model, recipe.run.recompute)
    return model


def planned_batch(recipe: Recipe, config: Config, model: Trained, source: str) -> Batch:
    """The items of one source that a process has in a step, each of the largest size."""
    count = recipe.batch_size(source)
    if count % parallel.world_size():
        raise UserError(
            f"run.batch_size {count} of {source} cannot be shared evenly by {parallel.world_size()} processes"
        )
    items = [f"item{number}" for number in range(count // parallel.world_size())]
    rows_of_item = max((head.get("inputs", 1) for head in config.model.heads.values()), default=1)
    inputs: dict[str, Inputs] = {}
    for key in recipe.data.modalities[source]:
        item = largest_item(config, key)
        if key in recipe.data.stem_views:  # computed once, before the steps
            with torch.device("meta"):
                features = model.adapters[key].stem_features({name: tensor.to("meta") for name, tensor in item.items()})
            item = {"features": torch.zeros(1).expand(features.shape)}
        rows = len(items) * rows_of_item
        inputs[key] = {name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in item.items()}  # no memory
    batch = Batch(inputs, items, items, [[item] for item in items], rows=rows_of_item, source=source)
    return with_masks(recipe, batch.measured(model.adapters)).split(recipe.run.grad_cache_chunks, model.adapters)


def largest_item(config: Config, key: str) -> Inputs:
    """Model input of one item of a modality, as large as its processor allows; any vocabulary serves for its words."""
    processor = processor_class(key).from_config(config.processors.get(key, {}), BUNDLED / "tiny")
    return processor.collate([processor.example(1.0, torch.Generator())])


def with_masks(recipe: Recipe, batch: Batch) -> Batch:
    """The batch with the masks of the recipe's passes; each token of a text is a word."""
    masks = {}
    for key, lengths in batch.lengths.items():
        rates = recipe.mask.get(key)
        by_word = rates is not None and rates.unit == "word"
        starts = torch.ones(len(lengths), int(lengths.max()) - 1, dtype=torch.bool) if by_word else None
        generators = [np.random.default_rng(row) for row in range(len(lengths))]
        masks[key] = draw_masks(rates, recipe.data.token_dropout.get(key, 0.0), lengths - 1, generators, starts)
    return replace(batch, masks=masks)


class NoData(TrainingData):
    """Stand-in for the data of a run, with what terms compute of it once: features of teachers, and inputs of names."""

    def __init__(self, recipe: Recipe, keys: Sequence[str]) -> None:
        super().__init__(recipe.data, (), {}, recipe.frozen_folder, None)
        self.rows = {key: row for row, key in enumerate([*keys, "another"])}  # one row has no standard deviation

    @property
    def tokenizer(self) -> Any:
        raise UserError("a term makes its inputs of the words of the data, so the run cannot be planned")

    def samples(self, options: TermOptions) -> Any:
        return self.tokenizer

    def texts(self, texts: Sequence[str]) -> Inputs:
        return {"ids": torch.full((len(texts), NAME_TOKENS), EOS, device="cpu")}

    def features(self, teacher: TeacherOptions, modality: str, output: str = "features") -> TeacherTable:
        return TeacherTable(self.rows, torch.zeros(len(self.rows), TEACHER_OUTPUTS[output], device="cpu"))


class PlannedObjective(Objective):
    """Objective without targets: the loss of a head is the sum of its outputs."""

    def loss_of(self, term: Term[Any], outputs: Any, batch: Batch) -> Any:
        if isinstance(term, Supervised):
            return {term.options.name: torch.stack([tensor.float().sum() for tensor in tensors_in(outputs)]).sum()}
        return super().loss_of(term, outputs, batch)


def planned_objective(recipe: Recipe, model: Trained, batches: Sequence[Batch]) -> Objective:
    """The objective in training mode, for any of these batches."""
    keys = max((batch.keys for batch in batches), key=len)
    return build_objective(recipe, model, NoData(recipe, keys), PlannedObjective).train()


def _count(recipe: Recipe, objective: Objective, batches: Sequence[Batch], card: Card, per_machine: int) -> Plan:
    """Plan of a recipe from its objective, which cannot be used afterwards, and a process's batches of a step."""
    run = recipe.run
    bfloat16 = run.precision != "float32"
    parameters = list(objective.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    states = optimizer_states(recipe, objective, trained)
    average = bytes_of(trained) if run.ema else 0
    checkpoint = bytes_of([*objective.state_dict().values(), *states]) + average
    memory = {"parameters": bytes_of(parameters), "optimizer": bytes_of(states), "average": average}
    shards = 1
    if objective.sharded:
        units = objective.model.sharding_units()
        shards = run.shard or min(per_machine, parallel.world_size())
        memory = {name: size // shards for name, size in memory.items()}
        kept = parallel.keeps_gathered(units, run.keep_gathered, card.memory)
        memory["gathered weights"] = (2 if bfloat16 else 4) * parallel.gathered_at_once(units, objective, kept)
        for parameter in parameters:
            if bfloat16 and parameter.ndim:
                parameter.data = parameter.data.bfloat16()  # as they are gathered
    elif parallel.world_size() > 1:
        memory["buckets of gradients"] = bytes_of(trained)
    flops = {}
    with as_on_a_gpu():
        objective.to_empty(device="cpu")
        meter = Meter(shards)
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(meter.keep_gradient)
        for batch in batches:
            before = meter.flops
            meter.take_passes(objective, batch, bfloat16)
            flops[batch.source] = meter.flops - before
    return Plan(
        recipe=replace(recipe, run=replace(run, shard=shards)) if objective.sharded else recipe,
        processes=parallel.world_size(),
        card=card,
        parameters=count_parameters(objective.model),
        trained=sum(parameter.numel() for parameter in objective.model.parameters() if parameter.requires_grad),
        memory={**memory, "activations and gradients": meter.peak},
        flops=flops,
        kernels=meter.kernels,
        checkpoint=checkpoint,
    )


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


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def plan_text(plan: Plan) -> str:
    """The output of ``onepeace train RECIPE --plan``."""
    run = plan.recipe.run
    steps = plan.recipe.schedule.steps
    items = ", ".join(f"{plan.recipe.batch_size(source)} {source}" for source in plan.recipe.data.modalities)
    rows = [("GB at the peak of a process", "")]
    rows += [(f"  {name}", f"{size / 1e9:.2f}") for name, size in plan.memory.items() if size]
    rows.append((f"  all and a tenth, of {plan.card.memory / 1e9:.0f}", f"{plan.peak / 1e9:.2f}"))
    rows.append(("GB of a checkpoint", f"{plan.checkpoint / 1e9:.2f}"))
    rows += [(f"GFLOP of an item, {source}", f"{flops / 1e9:,.1f}") for source, flops in plan.flops_per_item.items()]
    rows.append((f"EFLOP of {steps} steps", f"{steps * plan.flops_per_step / 1e18:.3g}"))
    rows.append(("kernels of a step", f"{plan.kernels:,}"))
    not_counted = NOT_COUNTED + (", losses of the heads" if plan.recipe.model.get("heads") else "")
    return "\n".join(
        [
            f"{items} a step on {plan.processes} {plan.card.name}",
            f"{'float32' if run.precision == 'float32' else 'bfloat16'}, recompute: {run.recompute}, "
            + (f"fsdp over {run.shard}" if run.shard else run.parallel),
            f"{plan.parameters:,} parameters, {plan.trained:,} of them trained",
            "",
            *(f"{name:<40}{value:>12}".rstrip() for name, value in rows),
            f"not counted: {not_counted}",
        ]
    )
