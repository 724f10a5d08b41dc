"""What the dry run computes without values, against steps of real tensors; the plan of the package, against it."""

import dry_run
import pytest
import torch
from support.planned import contrastive, planned_recipe
from support.training import with_slow
from trackers import PeakTracker, ShardedTracker

from onepeace.layers.recompute import set_recompute
from onepeace.model import OnePeace
from onepeace.plan import step as plan_step
from onepeace.plan.plan import make_plan
from onepeace.plan.synthetic import largest_items, synthetic_batch, synthetic_objective
from onepeace.train import parallel
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import make_config
from onepeace.train.setup import build_optimizer
from onepeace.train.step import Stepper

CPU = torch.device("cpu")


def training_batch(recipe, model, config, processes):
    """As many items of the largest size as one process has."""
    (source,) = recipe.data.modalities
    items = largest_items(config, recipe.data.modalities[source], recipe.batch_size(source) // processes)
    return synthetic_batch(recipe, source, model, items).split(recipe.run.grad_cache_chunks, model.adapters)


def make_stepper(recipe, model, modalities):
    """The step of a run, as `onepeace.train.trainer` assembles it, but of an objective whose data are made up."""
    bfloat16 = recipe.run.precision == "bfloat16"
    objective = synthetic_objective(recipe, model, modalities).train()
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


def peak_of_real_tensors(recipe, processes):
    """Over two steps; nothing of the dry run but layers as on a GPU."""
    config = make_config(recipe)
    model = OnePeace(config.model)
    add_lora_and_freeze(model, recipe)
    set_recompute(model, recipe.run.recompute)
    batch = training_batch(recipe, model, config, processes)
    stepper = make_stepper(recipe, model, batch.keys)
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
    plan = dry_run.make_plan(planned, processes, per_machine=2)
    with dry_run.as_first_of(processes), plan_step.as_on_a_gpu():
        peak = peak_of_real_tensors(planned, processes)
    assert plan.step.memory.total() == pytest.approx(peak, rel=0.05)


PLANNED = {
    "one process": (planned_recipe("audio", recompute="blocks", grad_cache_chunks=2), 1),
    "ddp": (contrastive("image", batch=16, depth=2), 4),
    "shards": (planned_recipe("image", parallel="fsdp", shard=2, keep_gathered=True, batch=16), 4),
    "shards that are freed": (planned_recipe("audio", parallel="fsdp", shard=4, keep_gathered=False, batch=16), 4),
}


@pytest.mark.parametrize("name", with_slow(PLANNED, "shards".__ne__))
def test_plan_is_near_the_dry_run(name):
    """Memory within 3 %, all FLOPs, and what is exchanged; of weights that are freed, gathers within a quarter."""
    recipe, processes = PLANNED[name]
    step = make_plan(recipe, processes, per_machine=2).step
    run = dry_run.make_plan(recipe, processes, per_machine=2).step
    assert step.memory.total() == pytest.approx(run.memory.total(), rel=0.03)
    assert step.flops == run.flops
    assert step.moved == pytest.approx(run.moved, rel=0.16)  # sharding copies too
    assert step.checkpoint == run.checkpoint
    total = sum(run.traffic.values())
    for collective, size in run.traffic.items():
        nearness = 0.25 if name == "shards that are freed" else 0.01
        assert step.traffic[collective] == pytest.approx(size, rel=nearness, abs=0.001 * total), collective
