"""What `onepeace train RECIPE --plan` computes without values, against steps of real tensors and closed forms."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.training import MODEL, terms
from support.training import recipe as small_recipe

from onepeace.cli import main
from onepeace.commands import train
from onepeace.config import SIZES, Config, ModelConfig, build, write_config
from onepeace.data.synthetic import item_batch, largest_items, synthetic_batch
from onepeace.errors import UserError
from onepeace.layers.recompute import set_recompute
from onepeace.model import OnePeace
from onepeace.plan import dry_run
from onepeace.plan.cards import CARDS, RING, StepTime, step_time
from onepeace.plan.dry_run import StepCost
from onepeace.plan.objective import synthetic_objective
from onepeace.plan.plan import make_plan, planned_config
from onepeace.plan.report import plan_text
from onepeace.plan.trackers import Group, OperationCounter, PeakTracker, ShardedTracker
from onepeace.train import parallel
from onepeace.train.build import build_optimizer
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import make_config
from onepeace.train.recipe import Recipe, read_recipe
from onepeace.train.step import Stepper

CPU = torch.device("cpu")
RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "pretrain"
SMALL = {"dim": 64, "embed_dim": 32, "num_heads": 4, "ffn_dim": 160}
DENOISING = {"scale": 2.5, "label_smoothing": 0.1}
TEXT = {"vocab_size": 300, "num_positions": 40, "num_buckets": 8}
TABLES = "adapters.*.bias_tables.*"
"""No kernel on a CPU computes their gradient without keeping the scores of attention."""
STAGES = {
    "image": {
        "objective": terms({"contrastive": {}, "denoising/text": DENOISING, "denoising/image": DENOISING,
                            "denoising/text+image": DENOISING}),
        "mask": {"text": {"unit": "word", "unimodal": 0.15, "joint": 0.4},
                 "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.6875}},
        "freeze": [TABLES],
    },
    "audio": {
        "objective": terms({"contrastive": {}, "denoising/audio": {**DENOISING, "teacher": "joint"},
                            "denoising/text+audio": DENOISING}),
        "mask": {"text": {"unit": "word", "joint": 0.4},
                 "audio": {"unit": "span", "unimodal": 0.55, "joint": 0.45}},
        "freeze": {"except": ["adapters.audio.[cps]*", "norms.audio.*", "blocks.*.ffn.audio.*", "heads.audio.*",
                              "logit_scale", "decoder.*"]},
    },
}  # fmt: skip


def recipe(other, batch=4, depth=1, **run):
    adapters = {
        "text": TEXT,
        "image": {"patch_size": 16, "grid": 10, "bias_grid": 10},
        "audio": {"stem": "wave", "convs": [[24, 10, 5], [24, 8, 8], [24, 8, 8]], "num_buckets": 8, "pos_groups": 4},
    }
    decoder = {"dim": 32, "depth": 1, "num_heads": 2, "ffn_dim": 64}
    content = {
        "model": {"size": "tiny", **SMALL, "depth": depth, "decoder": decoder, "adapters": adapters,
                  "modalities": ["text", other]},
        "processors": {"text": {"max_tokens": 20}, "image": {"size": 160}, "audio": {"max_seconds": 1}},
        "data": {"train": [{"shards": "x.tar", "pair": [other, "text"]}]},
        "schedule": {"steps": 10},
        "run": {"out": "x", "batch_size": batch, "precision": "bfloat16", **run},
        **STAGES[other],
    }  # fmt: skip
    return build(Recipe, content, "recipe")


def contrastive(other="audio", **fields):
    """Without masked passes: the fewest operations."""
    return replace(recipe(other, **fields), objective=terms({"contrastive": {}}), mask={}, freeze=())


def real_peak(wanted, processes):
    """Peak by torch's own tracker over two steps of real tensors; nothing of the dry run but layers as on a GPU."""
    config = make_config(wanted)
    (source,) = wanted.data.modalities
    model = OnePeace(config.model)
    add_lora_and_freeze(model, wanted)
    set_recompute(model, wanted.run.recompute)
    items = largest_items(config, wanted.data.modalities[source], wanted.batch_size(source) // processes)
    batch = synthetic_batch(wanted.data, wanted.mask, model.adapters, items)
    batch = replace(batch, source=source).split(wanted.run.grad_cache_chunks, model.adapters)
    objective = synthetic_objective(wanted, model, batch.keys).train()
    bfloat16 = wanted.run.precision == "bfloat16"
    if objective.sharded:
        parallel.shard(objective, model.sharding_units(), wanted.run, CPU, bfloat16)
    optimizer = build_optimizer(wanted, objective)
    average = {name: p.detach().clone() for name, p in model.named_parameters() if wanted.run.ema and p.requires_grad}
    stepper = Stepper(wanted, objective, optimizer, average, CPU, bfloat16)
    stepper.parallelized = objective
    tracker = ShardedTracker(objective, optimizer) if objective.sharded else PeakTracker()
    tensors = []
    for part in batch.parts or [batch]:
        tensors += [tensor for inputs in part.inputs.values() for tensor in inputs.values()]
    if objective.sharded:
        tracker.track_inputs(tuple(tensors))
    else:
        tracker.track_external(objective, optimizer, *tensors, *average.values())
    with tracker:
        for step in (1, 2):
            stepper(step, [batch], 1e-3)
            tracker.reset_mod_stats()
    return tracker.get_tracker_snapshot("peak")[CPU]["Total"]


@pytest.mark.parametrize(
    ("other", "processes", "run"),
    [
        ("image", 1, {"precision": "float32", "ema": 0.9}),
        pytest.param("audio", 1, {"recompute": "blocks", "grad_cache_chunks": 2}, marks=pytest.mark.slow),
        ("image", 4, {"parallel": "fsdp", "shard": 2, "keep_gathered": True, "batch": 16}),
        pytest.param("audio", 4, {"parallel": "fsdp", "shard": 4, "keep_gathered": False, "batch": 16},
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_memory_is_that_of_a_step_of_real_tensors(other, processes, run, monkeypatch):
    wanted = recipe(other, **run)
    plan = make_plan(wanted, processes, per_machine=2)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attend(query, key, value, attn_mask=None, scale=None):
        return kernel(query, key, value, attn_mask=attn_mask, scale=scale)[0]

    monkeypatch.setattr(dry_run, "efficient_attention", attend)
    with dry_run.processes(processes), dry_run.as_on_a_gpu():
        peak = real_peak(wanted, processes)
    assert plan.step.memory.total() == pytest.approx(peak, rel=0.05)
    assert plan.memory > 1.05 * plan.step.memory.total()


def test_memory_by_kind():
    def plan(processes, **run):
        return make_plan(contrastive("image", batch=16, depth=2, **run), processes)

    whole = plan(1)
    memory = whole.step.memory
    assert memory["parameters"] == 4 * whole.parameters
    assert memory["optimizer"] == pytest.approx(8 * whole.trained, rel=0.01)
    averaged = plan(1, ema=0.9, recompute="blocks")
    assert averaged.step.memory["other"] - memory["other"] == 4 * whole.trained
    assert averaged.step.memory["activations"] < 0.9 * memory["activations"]
    wide = replace(contrastive("image", batch=1), processors={"image": {"size": 16}, "text": {"max_tokens": 2}})
    few = make_plan(wide)
    assert few.step.memory["gradients"] == pytest.approx(4 * few.trained, rel=0.1)  # more than what so few items need
    ddp = plan(4)
    assert ddp.step.memory["gradients"] - memory["gradients"] == 4 * whole.trained  # buckets
    sharded = plan(4, parallel="fsdp", ema=0.9, keep_gathered=False)
    for kind in ("parameters", "optimizer"):
        assert sharded.step.memory[kind] == pytest.approx(memory[kind] / 4, rel=0.05)
    kept = plan(4, parallel="fsdp", keep_gathered=True)
    assert sharded.step.memory["gathered weights"] < 0.8 * kept.step.memory["gathered weights"]
    for saving in (averaged, sharded):
        assert saving.step.checkpoint == pytest.approx(4 * whole.parameters + 12 * whole.trained, rel=0.01)
    assert sharded.step.memory["other"] - kept.step.memory["other"] == pytest.approx(whole.trained, rel=0.05)


def test_traffic_of_shards_and_replicas():
    """Weights are gathered in two bytes, once if they are kept; gradients are reduced in four, within and between."""
    fsdp = {"parallel": "fsdp", "shard": 2, "batch": 16}
    plan = make_plan(contrastive("image", keep_gathered=True, **fsdp), 8, per_machine=2)
    machine, replicas = Group(2, 2), Group(4, 1)
    traffic = plan.step.traffic
    assert traffic["allgather_base", machine] == pytest.approx(2 * plan.parameters, rel=0.03)
    assert traffic["reduce_scatter_base", machine] == pytest.approx(4 * plan.trained, rel=0.03)
    assert traffic["allreduce", replicas] == pytest.approx(2 * plan.trained, rel=0.03)
    freed = make_plan(contrastive("image", keep_gathered=False, **fsdp), 8, per_machine=2).step.traffic
    assert freed["allgather_base", machine] > 1.5 * traffic["allgather_base", machine]
    ddp = make_plan(contrastive("image", batch=16), 8, per_machine=2)
    vectors = 2 * 16 * SMALL["embed_dim"] * 4
    assert ddp.step.traffic["allgather", Group(8, 2)] == vectors
    assert ddp.step.traffic["allreduce", Group(8, 2)] == vectors + 4 * ddp.trained


def test_flops_do_not_depend_on_processes():
    one, many = (make_plan(contrastive(batch=8, parallel="fsdp"), processes) for processes in (1, 4))
    assert many.flops_per_step == pytest.approx(one.flops_per_step, rel=1e-3)
    assert one.flops_per_item == {"audio+text": one.flops_per_step / 8}


def test_plan_command_prints_the_plan(tmp_path, capsys):
    wanted = contrastive(recompute="blocks", parallel="fsdp")
    write_config(wanted, tmp_path / "recipe.yaml")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--plan", "--processes", "2", "--card", "a100"]) == 0
    printed = capsys.readouterr().out
    assert printed == plan_text(make_plan(wanted, 2, CARDS["a100"])) + "\n"
    assert "4 audio+text a step on 2 A100 80 GB, bfloat16, recompute: blocks, fsdp over 2" in printed
    assert "<- limits" in printed
    assert train.CARDS == tuple(CARDS)


@pytest.mark.parametrize(
    ("flops", "size", "group", "limit"),
    [
        (1e15, 1e6, Group(8, 8), "compute"),
        (1e12, 1e12, Group(8, 8), "links"),
        (1e12, 1e12, Group(8, 1), "network"),
        (1e12, 1e14, Group(64, 8), "network"),  # eight adapters at once
        (1e12, 1e6, Group(8, 8), "reader"),
    ],
)
def test_slowest_part_limits_a_step(flops, size, group, limit):
    cost = StepCost(
        memory=Counter(),
        flops=Counter({("audio+text", torch.bfloat16): flops}),
        traffic=Counter({("allreduce", group): size}),
        checkpoint=0,
    )
    time = step_time(cost, recipe("audio", batch=64), processes=8, card=CARDS["h100"])
    assert time.limit == limit
    assert time.compute == pytest.approx(flops / (0.4 * 989e12))
    sent = 2 * size * (group.size - 1) / group.size
    in_machine = group.size == group.on_machine
    assert time.links == pytest.approx(sent / 450e9 if in_machine else 0)
    assert time.network == pytest.approx(0 if in_machine else sent / (50e9 * group.on_machine))


def test_limit_of_equal_parts_is_the_first():
    assert StepTime(1.0, 1.0, 0.0, 0.5).limit == "compute"
    assert set(RING.values()) == {1, 2}


@pytest.mark.parametrize("name", ["tiny_audio_text", "tiny_joint", "base_audio_text"])
def test_size_says_what_a_start_that_is_not_there_will_be(name):
    wanted = read_recipe(RECIPES / f"{name}.yaml")
    assert planned_config(wanted).model.dim == {"tiny": 256, "base": 768}[wanted.start.size]
    with pytest.raises(UserError, match=r"model\.from .* model\.size"):
        planned_config(read_recipe(RECIPES / f"{name}.yaml", ["model.size=null"]))


@pytest.mark.parametrize("name", ["pretrain/tiny_longer", "finetune/avqa"])
def test_a_size_that_does_not_fit_the_recipe_is_an_error_for_the_user(name):
    """Another stem's patches, and longer texts than the size has positions."""
    with pytest.raises(UserError):
        make_plan(read_recipe(RECIPES.parent / f"{name}.yaml", ["model.size=tiny", "run.batch_size=2"]))


def test_a_batch_must_be_a_multiple_of_the_processes():
    with pytest.raises(UserError, match="cannot be shared evenly by 3 processes"):
        make_plan(contrastive(), 3)


def test_a_recipe_from_a_released_model_is_planned_by_size_and_downloads_nothing(tmp_path, monkeypatch):
    """Of two pictures an item (NLVR2), each computed."""
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path))
    nlvr2 = RECIPES.parent / "finetune" / "nlvr2.yaml"
    with pytest.raises(UserError, match=r"model\.from .* model\.size"):
        planned_config(read_recipe(nlvr2))
    assert not list(tmp_path.iterdir())  # no lock of a download
    small = ["model.size=tiny", "model.depth=1", "run.batch_size=2", "run.grad_cache_chunks=1",
             "processors.image.size=64"]  # fmt: skip
    single = ["model.adapters.image.num_types=1", "model.heads.classifier.inputs=1"]
    flops = make_plan(read_recipe(nlvr2, small)).flops_per_step
    assert 1.9 < flops / make_plan(read_recipe(nlvr2, [*small, *single])).flops_per_step < 2.1


def flops_with_views(tmp_path, views):
    adapters = {"text": TEXT, "audio": {"stem": "aisfx", "width": 4, "num_buckets": 8, "pos_depth": 1, "pos_groups": 4}}
    model = {**MODEL, "adapters": adapters, "modalities": [*adapters], "projections": [*adapters]}
    data = {"root": "none", "train": [{"shards": "tones.tar", "pair": ["audio", "text"]}], "stem_views": views}
    freeze = ["adapters.audio.stem.network.*"]
    wanted = small_recipe(tmp_path, tmp_path, pair="audio", model=model, data=data, freeze=freeze)
    return make_plan(wanted).flops_per_item["audio+text"]


def test_a_step_over_kept_features_costs_the_transformer_only(tmp_path):
    live, kept = flops_with_views(tmp_path, {}), flops_with_views(tmp_path, {"audio": 2})
    # Of 15 seconds: 72 bands from 376 frequencies of 320 windows, then pairs of 3x3 convolutions, each over a quarter
    # of the places before it and with twice the channels.
    bands = 2 * 320 * 376 * 72
    network = sum(2 * 9 * 320 * 72 // 4**i * ((2 * 2**i if i else 1) + 4 * 2**i) * 4 * 2**i for i in range(4))
    assert 0.97 * (bands + network) < live - kept < 1.03 * (bands + network)


def test_a_caption_head_is_planned(tmp_path):
    head = {"kind": "caption", "on": ["image"], "vocab_size": 400, "dim": 32, "depth": 1, "num_heads": 2, "ffn_dim": 64}
    model = {**MODEL, "heads": {"caption": head}}
    plan = make_plan(small_recipe(tmp_path, tmp_path, model=model, objective={"captioning/image": {}}))
    assert plan.flops_per_step > 0
    assert plan.step.memory["activations"] > 24 * 15 * 400 * 4  # 24 items with logits of 400 words at 15 places or more


def flops_of_a_pass(config, key, size):
    counter = OperationCounter(per_machine=1)
    with torch.device("meta"):  # values do not matter, and drawing them would take most of the time
        model = OnePeace(config.model)
    inputs = {name: tensor.to("meta") for name, tensor in item_batch(config, key, size).items()}
    with torch.no_grad(), counter:
        model.eval()({key: inputs})
    return counter.flops.total()


@pytest.mark.parametrize(("key", "size", "length"), [("text", 16, 17), ("image", 64, 17)])
def test_flops_of_a_pass_are_those_of_the_closed_form(key, size, length):
    """Per token and block 2 (4 D^2 + 3 D F) and 4 L D for attention, then the stem and one projection."""
    dim, ffn, depth = 768, 2048, 2
    config = Config(build(ModelConfig, {**SIZES["base"], "depth": depth}, "base"))
    blocks = depth * length * (2 * (4 * dim**2 + 3 * dim * ffn) + 4 * length * dim)
    inner = dim // 4
    # A picture of 64 px: 16 x 16 windows of 4 x 4 x 3, then 8 x 8 and 4 x 4 of 2 x 2 x inner.
    stem = 0 if key == "text" else 2 * inner * (256 * 48 + 64 * 4 * inner + 16 * 4 * dim)
    assert flops_of_a_pass(config, key, size) == blocks + stem + 2 * dim * 768


def test_flops_of_sound_are_those_of_the_closed_form():
    convs = [[8, 10, 5], [8, 3, 2]]
    audio = {"stem": "wave", "convs": convs, "num_buckets": 8, "pos_depth": 2, "pos_kernel": 5, "pos_groups": 4}
    config = Config(ModelConfig(32, 16, 2, 4, 48, adapters={"audio": audio}, projections=("audio",)))
    frames = [3199, 1599]  # of a second
    stem = 2 * 8 * (frames[0] * 10 + frames[1] * 3 * 8) + 2 * frames[1] * 8 * 32
    positions = 2 * frames[1] * 2 * 5 * 32 * 32 // 4
    length = frames[1] + 1
    blocks = 2 * length * (2 * (4 * 32**2 + 3 * 32 * 48) + 4 * length * 32)
    assert flops_of_a_pass(config, "audio", 1) == stem + positions + blocks + 2 * 32 * 16
