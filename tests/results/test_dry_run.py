"""What the dry run computes without values, against steps of real tensors; the plan of the package, against it."""

from dataclasses import replace

import dry_run
import pytest
import torch
from support.planned import contrastive, planned_recipe
from support.training import with_slow
from trackers import PeakTracker, ShardedTracker

from onepeace.layers.recompute import set_recompute
from onepeace.model import OnePeace
from onepeace.plan import step as plan_step
from onepeace.plan.plan import make_plan, planned_batch, planned_objective
from onepeace.train import parallel
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import make_config
from onepeace.train.setup import build_optimizer
from onepeace.train.step import Stepper

CPU = torch.device("cpu")


def with_values(tensor):
    """Numbers in memory of their own, and ids of the small vocabulary."""
    return tensor.contiguous() if tensor.is_floating_point() else tensor.clamp(max=299)


def training_batch(recipe, model, config):
    """As many items of the largest size as one process has."""
    (source,) = recipe.data.modalities
    batch = planned_batch(recipe, config, model, source)
    return replace(batch, inputs=batch.map(with_values).inputs, parts=())


def make_stepper(recipe, model, batch):
    """The step of a run, as `onepeace.train.trainer` assembles it, but of an objective whose data are made up."""
    bfloat16 = recipe.run.precision == "bfloat16"
    objective = planned_objective(recipe, model, [batch])
    if objective.sharded:
        parallel.shard(objective, model.sharding_units(), recipe.run, CPU, bfloat16)
    average = {}
    if recipe.run.ema:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                average[name] = parameter.detach().clone()
    optimizer = build_optimizer(recipe, objective)
    return Stepper(recipe, objective, optimizer, average, CPU, bfloat16)


def tracker_of(stepper, batch):
    """Torch's own, which knows what is in memory before a step."""
    inputs = []
    for part in batch.parts or [batch]:
        for tensors in part.inputs.values():
            inputs += tensors.values()
    if stepper.objective.sharded:
        tracker = ShardedTracker(stepper.objective, stepper.optimizer)
        tracker.track_inputs(tuple(inputs))
    else:
        tracker = PeakTracker()
        tracker.track_external(stepper.objective, stepper.optimizer, *inputs, *stepper.average.values())
    return tracker


def peak_of_real_tensors(recipe):
    """Over two steps; nothing of the dry run but layers as on a GPU."""
    config = make_config(recipe)
    model = OnePeace(config.model)
    add_lora_and_freeze(model, recipe)
    set_recompute(model, recipe.run.recompute)
    batch = training_batch(recipe, model, config)
    stepper = make_stepper(recipe, model, batch)
    tracker = tracker_of(stepper, batch)
    with tracker:
        for step in (1, 2):
            stepper(step, [batch], 1e-3)
            tracker.reset_mod_stats()
    return tracker.get_tracker_snapshot("peak")[CPU]["Total"]


@pytest.fixture
def attention_of_a_gpu(monkeypatch):
    """A kernel of the CPU that keeps as little as that of a GPU."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attend(query, key, value, attn_mask=None, scale=None):
        return kernel(query, key, value, attn_mask=attn_mask, scale=scale)[0]

    monkeypatch.setattr(plan_step, "efficient_attention", attend)


@pytest.mark.usefixtures("attention_of_a_gpu")
@pytest.mark.parametrize(
    ("modality", "processes", "run"),
    [
        ("image", 1, {"precision": "float32", "ema": 0.9}),
        pytest.param(
            "image", 4, {"parallel": "fsdp", "shard": 2, "keep_gathered": True, "batch": 16}, marks=pytest.mark.slow
        ),
    ],
)
def test_memory_is_that_of_a_step_of_real_tensors(modality, processes, run):
    planned = planned_recipe(modality, **run)
    run = dry_run.run_step(planned, processes, per_machine=2)
    with dry_run.as_first_of(processes), dry_run.as_on_a_gpu():
        peak = peak_of_real_tensors(planned)
    assert run.step.memory.total() == pytest.approx(peak, rel=0.05)


PLANNED = {
    "one process": (planned_recipe("audio", recompute="blocks", grad_cache_chunks=2), 1),
    "ddp": (contrastive("image", batch=16, depth=2), 4),
    "shards": (planned_recipe("image", parallel="fsdp", shard=2, keep_gathered=True, batch=16), 4),
    "shards that are freed": (planned_recipe("audio", parallel="fsdp", shard=4, keep_gathered=False, batch=16), 4),
}


@pytest.mark.parametrize("name", with_slow(PLANNED, "shards".__ne__))
def test_plan_is_near_the_dry_run(name):
    recipe, processes = PLANNED[name]
    plan = make_plan(recipe, processes, per_machine=2)
    step = dry_run.run_step(recipe, processes, per_machine=2).step
    assert sum(plan.memory.values()) == pytest.approx(step.memory.total(), rel=0.05)
    assert sum(plan.flops.values()) == pytest.approx(step.flops.total(), rel=0.01)
    assert plan.checkpoint == step.checkpoint
