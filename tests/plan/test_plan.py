"""What `onepeace train RECIPE --plan` computes without values, against steps of real tensors and closed forms."""

from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from support.training import MODEL, terms
from support.training import make_recipe as small_recipe

from onepeace.cli import main
from onepeace.commands import train
from onepeace.config import SIZES, Config, ModelConfig, build, write_config
from onepeace.errors import UserError
from onepeace.layers.recompute import set_recompute
from onepeace.model import OnePeace
from onepeace.plan import dry_run
from onepeace.plan.cards import CARDS, StepTime, step_time
from onepeace.plan.dry_run import StepCost
from onepeace.plan.objective import synthetic_objective
from onepeace.plan.plan import make_plan, planned_config
from onepeace.plan.report import plan_text
from onepeace.plan.synthetic import item_batch, largest_items, synthetic_batch
from onepeace.plan.trackers import Group, OperationCounter, PeakTracker, ShardedTracker
from onepeace.train import parallel
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.model_config import make_config
from onepeace.train.recipe import Recipe, read_recipe
from onepeace.train.setup import build_optimizer
from onepeace.train.step import Stepper

CPU = torch.device("cpu")
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMALL = {"dim": 64, "embed_dim": 32, "num_heads": 4, "ffn_dim": 160}
DENOISING = {"scale": 2.5, "label_smoothing": 0.1}
TEXT = {"vocab_size": 300, "num_positions": 40, "num_buckets": 8}
TABLES = "adapters.*.bias_tables.*"
"""No kernel on a CPU computes their gradient without keeping the scores of attention."""
STAGES = {
    "image": {
        "objective": terms(
            {
                "contrastive": {},
                "denoising/text": DENOISING,
                "denoising/image": DENOISING,
                "denoising/text+image": DENOISING,
            }
        ),
        "mask": {
            "text": {"unit": "word", "unimodal": 0.15, "joint": 0.4},
            "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.6875},
        },
        "freeze": [TABLES],
    },
    "audio": {
        "objective": terms(
            {
                "contrastive": {},
                "denoising/audio": {**DENOISING, "teacher": "joint"},
                "denoising/text+audio": DENOISING,
            }
        ),
        "mask": {
            "text": {"unit": "word", "joint": 0.4},
            "audio": {"unit": "span", "unimodal": 0.55, "joint": 0.45},
        },
        "freeze": {
            "except": [
                "adapters.audio.[cps]*",
                "norms.audio.*",
                "blocks.*.ffn.audio.*",
                "heads.audio.*",
                "logit_scale",
                "decoder.*",
            ]
        },
    },
}
ADAPTERS = {
    "text": TEXT,
    "image": {"patch_size": 16, "grid": 10, "bias_grid": 10},
    "audio": {"stem": "wave", "convs": [[24, 10, 5], [24, 8, 8], [24, 8, 8]], "num_buckets": 8, "pos_groups": 4},
}


def planned_recipe(modality, batch=4, depth=1, **run):
    """Contrast and denoising of texts and another modality."""
    content = {
        "model": {
            **SMALL,
            "size": "tiny",
            "depth": depth,
            "decoder": {"dim": 32, "depth": 1, "num_heads": 2, "ffn_dim": 64},
            "adapters": ADAPTERS,
            "modalities": ["text", modality],
        },
        "processors": {"text": {"max_tokens": 20}, "image": {"size": 160}, "audio": {"max_seconds": 1}},
        "data": {"train": [{"shards": "x.tar", "pair": [modality, "text"]}]},
        "schedule": {"steps": 10},
        "run": {"out": "x", "batch_size": batch, "precision": "bfloat16", **run},
        **STAGES[modality],
    }
    return build(Recipe, content, "recipe")


def contrastive(modality="audio", **fields):
    """Without masked passes: the fewest operations."""
    return replace(planned_recipe(modality, **fields), objective=terms({"contrastive": {}}), mask={}, freeze=())


# Memory


def training_batch(recipe, model, config, processes):
    """As many items of the largest size as one process has."""
    (source,) = recipe.data.modalities
    items = largest_items(config, recipe.data.modalities[source], recipe.batch_size(source) // processes)
    batch = synthetic_batch(recipe.data, recipe.mask, model.adapters, items)
    return replace(batch, source=source).split(recipe.run.grad_cache_chunks, model.adapters)


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
    stepper = Stepper(recipe, objective, optimizer, average, CPU, bfloat16)
    stepper.parallelized = objective
    return stepper


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

    monkeypatch.setattr(dry_run, "efficient_attention", attend)


@pytest.mark.usefixtures("attention_of_a_gpu")
@pytest.mark.parametrize(
    ("modality", "processes", "run"),
    [
        ("image", 1, {"precision": "float32", "ema": 0.9}),
        pytest.param("audio", 1, {"recompute": "blocks", "grad_cache_chunks": 2}, marks=pytest.mark.slow),
        ("image", 4, {"parallel": "fsdp", "shard": 2, "keep_gathered": True, "batch": 16}),
        pytest.param(
            "audio",
            4,
            {"parallel": "fsdp", "shard": 4, "keep_gathered": False, "batch": 16},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_memory_is_that_of_a_step_of_real_tensors(modality, processes, run):
    planned = planned_recipe(modality, **run)
    plan = make_plan(planned, processes, per_machine=2)
    with dry_run.processes(processes), dry_run.as_on_a_gpu():
        peak = peak_of_real_tensors(planned, processes)
    assert plan.step.memory.total() == pytest.approx(peak, rel=0.05)
    assert plan.memory > 1.05 * plan.step.memory.total()


@cache
def plan_of_images(processes, **run):
    return make_plan(contrastive("image", batch=16, depth=2, **run), processes)


AVERAGED = {"ema": 0.9, "recompute": "blocks"}
SHARDED = {"ema": 0.9, "parallel": "fsdp", "keep_gathered": False}


@pytest.fixture(scope="module")
def one_process():
    return plan_of_images(1)


def test_memory_of_weights_and_optimizer(one_process):
    memory = one_process.step.memory
    assert memory["parameters"] == 4 * one_process.parameters
    assert memory["optimizer"] == pytest.approx(8 * one_process.trained, rel=0.01)


def test_memory_of_gradients_of_few_items():
    """With few items the gradients need more memory than the activations, and thus make the peak."""
    small_items = {"image": {"size": 16}, "text": {"max_tokens": 2}}
    plan = make_plan(replace(contrastive("image", batch=1), processors=small_items))
    assert plan.step.memory["gradients"] == pytest.approx(4 * plan.trained, rel=0.1)


def test_memory_of_an_average_and_recomputation(one_process):
    memory = one_process.step.memory
    averaged = plan_of_images(1, **AVERAGED).step.memory
    assert averaged["other"] - memory["other"] == 4 * one_process.trained
    assert averaged["activations"] < 0.9 * memory["activations"]


def test_memory_of_buckets_of_ddp(one_process):
    buckets = plan_of_images(4).step.memory["gradients"] - one_process.step.memory["gradients"]
    assert buckets == 4 * one_process.trained


def test_memory_of_shards(one_process):
    memory = one_process.step.memory
    sharded = plan_of_images(4, **SHARDED).step.memory
    kept = plan_of_images(4, parallel="fsdp", keep_gathered=True).step.memory
    for part in ("parameters", "optimizer"):
        assert sharded[part] == pytest.approx(memory[part] / 4, rel=0.05)
    assert sharded["gathered weights"] < 0.8 * kept["gathered weights"]
    assert sharded["other"] - kept["other"] == pytest.approx(one_process.trained, rel=0.05)


@pytest.mark.parametrize(("processes", "run"), [(1, AVERAGED), (4, SHARDED)])
def test_size_of_a_checkpoint(processes, run):
    """Weights, and of each that is trained two moments and an average."""
    plan = plan_of_images(processes, **run)
    assert plan.step.checkpoint == pytest.approx(4 * plan.parameters + 12 * plan.trained, rel=0.01)


# Traffic and time


@pytest.fixture(scope="module")
def traffic_of_shards():
    """Plans of four machines with two GPUs each, by whether weights are kept for the backward pass."""
    plans = {}
    for keep_gathered in (True, False):
        run = {"parallel": "fsdp", "shard": 2, "batch": 16, "keep_gathered": keep_gathered}
        plans[keep_gathered] = make_plan(contrastive("image", **run), 8, per_machine=2)
    return plans


MACHINE = Group(size=2, on_machine=2)
REPLICAS = Group(size=4, on_machine=1)


def test_traffic_of_shards_and_replicas(traffic_of_shards):
    """Weights are gathered in two bytes, gradients are reduced in four, within and between machines."""
    plan = traffic_of_shards[True]
    traffic = plan.step.traffic
    assert traffic["allgather_base", MACHINE] == pytest.approx(2 * plan.parameters, rel=0.03)
    assert traffic["reduce_scatter_base", MACHINE] == pytest.approx(4 * plan.trained, rel=0.03)
    assert traffic["allreduce", REPLICAS] == pytest.approx(2 * plan.trained, rel=0.03)


def test_traffic_of_weights_that_are_not_kept(traffic_of_shards):
    kept = traffic_of_shards[True].step.traffic["allgather_base", MACHINE]
    assert traffic_of_shards[False].step.traffic["allgather_base", MACHINE] > 1.5 * kept


def test_traffic_of_ddp():
    plan = make_plan(contrastive("image", batch=16), 8, per_machine=2)
    vectors = 2 * 16 * SMALL["embed_dim"] * 4
    everybody = Group(size=8, on_machine=2)
    assert plan.step.traffic["allgather", everybody] == vectors
    assert plan.step.traffic["allreduce", everybody] == vectors + 4 * plan.trained


H100_FLOPS = 0.4 * 989e12
LINKS = 450e9
NETWORK = 50e9


def time_of_a_step(flops, operation, size, group):
    cost = StepCost(
        memory=Counter(),
        flops=Counter({("audio+text", torch.bfloat16): flops}),
        traffic=Counter({(operation, group): size}),
        checkpoint=0,
    )
    return step_time(cost, planned_recipe("audio", batch=64), processes=8, card=CARDS["h100"])


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
    time = time_of_a_step(flops, "allreduce", size, group)
    assert time.limit == limit
    assert time.compute == pytest.approx(flops / H100_FLOPS)
    sent = 2 * size * (group.size - 1) / group.size
    if group.size == group.on_machine:
        assert time.links == pytest.approx(sent / LINKS)
        assert time.network == 0
    else:
        assert time.links == 0
        assert time.network == pytest.approx(sent / (NETWORK * group.on_machine))


@pytest.mark.parametrize("operation", ["allgather", "allgather_base", "reduce_scatter_base", "broadcast"])
def test_links_carry_what_is_gathered_once(operation):
    time = time_of_a_step(1e12, operation, 1e12, Group(8, 8))
    assert time.links == pytest.approx(1e12 * 7 / 8 / LINKS)


def test_limit_of_equal_parts_is_the_first():
    assert StepTime(1.0, 1.0, 0.0, 0.5).limit == "compute"


# Operations


def test_flops_do_not_depend_on_processes():
    alone = make_plan(contrastive(batch=8, parallel="fsdp"), 1)
    spread = make_plan(contrastive(batch=8, parallel="fsdp"), 4)
    assert spread.flops_per_step == pytest.approx(alone.flops_per_step, rel=1e-3)
    assert alone.flops_per_item == {"audio+text": alone.flops_per_step / 8}


SFX_STEM = {"stem": "aisfx", "width": 4, "num_buckets": 8, "pos_depth": 1, "pos_groups": 4}


def flops_with_views(folder, views):
    """Operations per item, whose stem is computed in every step, or kept in so many views."""
    adapters = {"text": TEXT, "audio": SFX_STEM}
    planned = small_recipe(
        folder,
        folder,
        pair="audio",
        model={**MODEL, "adapters": adapters, "modalities": list(adapters), "projections": list(adapters)},
        data={"root": "none", "train": [{"shards": "tones.tar", "pair": ["audio", "text"]}], "stem_views": views},
        freeze=["adapters.audio.stem.network.*"],
    )
    return make_plan(planned).flops_per_item["audio+text"]


def sfx_stem_flops(seconds=15):
    """72 bands from 376 frequencies of the windows, then four pairs of 3x3 convolutions, each pair over a quarter of
    the places before it and with twice the channels."""
    windows = 64 * seconds // 3
    flops = 2 * windows * 376 * 72
    places = windows * 72
    before = 1
    after = 4
    for _ in range(4):
        flops += 2 * 9 * places * (before + after) * after
        places //= 4
        before = after
        after *= 2
    return flops


def test_step_over_kept_features_costs_the_transformer_only(tmp_path):
    live = flops_with_views(tmp_path, {})
    kept = flops_with_views(tmp_path, {"audio": 2})
    assert live - kept == pytest.approx(sfx_stem_flops(), rel=0.03)


def test_caption_head_is_planned(tmp_path):
    head = {"kind": "caption", "on": ["image"], "vocab_size": 400, "dim": 32, "depth": 1, "num_heads": 2, "ffn_dim": 64}
    model = {**MODEL, "heads": {"caption": head}}
    plan = make_plan(small_recipe(tmp_path, tmp_path, model=model, objective={"captioning/image": {}}))
    assert plan.flops_per_step > 0
    logits = 24 * 15 * 400 * 4  # 24 items, 400 words at 15 places or more
    assert plan.step.memory["activations"] > logits


def flops_of_a_pass(config, modality, size):
    counter = OperationCounter(per_machine=1)
    with torch.device("meta"):  # values do not matter, and drawing them would take most of the time
        model = OnePeace(config.model).eval()
    inputs = {name: tensor.to("meta") for name, tensor in item_batch(config, modality, size).items()}
    with torch.no_grad(), counter:
        model({modality: inputs})
    return counter.flops.total()


def block_flops(length, dim, ffn_dim):
    """Per token projections of attention and a gated FFN, and attention itself."""
    per_token = 2 * (4 * dim**2 + 3 * dim * ffn_dim) + 4 * length * dim
    return length * per_token


@pytest.mark.parametrize(("modality", "size", "length"), [("text", 16, 17), ("image", 64, 17)])
def test_flops_of_a_pass_are_those_of_the_closed_form(modality, size, length):
    config = Config(build(ModelConfig, {**SIZES["base"], "depth": 2}, "base"))
    dim = 768
    flops = 2 * block_flops(length, dim, ffn_dim=2048)
    flops += 2 * dim * dim  # projection
    if modality == "image":
        # A picture of 64 px: 16 x 16 windows of 4 x 4 x 3, then 8 x 8 and 4 x 4 of 2 x 2 x inner.
        inner = dim // 4
        flops += 2 * inner * (256 * 48 + 64 * 4 * inner + 16 * 4 * dim)
    assert flops_of_a_pass(config, modality, size) == flops


def test_flops_of_sound_are_those_of_the_closed_form():
    audio = {
        "stem": "wave",
        "convs": [[8, 10, 5], [8, 3, 2]],
        "num_buckets": 8,
        "pos_depth": 2,
        "pos_kernel": 5,
        "pos_groups": 4,
    }
    config = Config(ModelConfig(32, 16, 2, 4, 48, adapters={"audio": audio}, projections=("audio",)))
    frames = 1599  # of a second; 3199 after the first convolution
    stem = 2 * 8 * (3199 * 10 + frames * 3 * 8) + 2 * frames * 8 * 32
    positions = 2 * frames * 2 * 5 * 32 * 32 // 4
    blocks = 2 * block_flops(frames + 1, dim=32, ffn_dim=48)
    projection = 2 * 32 * 16
    assert flops_of_a_pass(config, "audio", 1) == stem + positions + blocks + projection


# Recipes


def test_plan_command_prints_the_plan(tmp_path, capsys):
    planned = contrastive(recompute="blocks", parallel="fsdp")
    file = tmp_path / "recipe.yaml"
    write_config(planned, file)
    assert main(["train", str(file), "--plan", "--processes", "2", "--card", "a100"]) == 0
    printed = capsys.readouterr().out
    assert printed == plan_text(make_plan(planned, 2, CARDS["a100"])) + "\n"
    for words in ("A100", "bfloat16", "recompute: blocks", "fsdp over 2", "<- limits"):
        assert words in printed


def test_cards_of_the_command():
    assert train.CARD_NAMES == tuple(CARDS)


@pytest.mark.parametrize(
    ("name", "dim"),
    [("tiny_audio_text", 256), ("tiny_joint", 256), ("base_audio_text", 768)],
)
def test_start_that_is_not_there_is_planned_by_size(name, dim):
    file = RECIPES / "pretrain" / f"{name}.yaml"
    assert planned_config(read_recipe(file)).model.dim == dim
    with pytest.raises(UserError, match=r"model\.size"):
        planned_config(read_recipe(file, ["model.size=null"]))


@pytest.mark.parametrize(
    ("name", "mismatch"),
    [
        ("pretrain/tiny_longer", "patches of 32, not 16"),
        ("finetune/avqa", "513 text tokens .* limit of 79"),
    ],
)
def test_size_that_does_not_fit_the_recipe(name, mismatch):
    """Patches of another stem, and texts longer than the size has positions."""
    planned = read_recipe(RECIPES / f"{name}.yaml", ["model.size=tiny", "run.batch_size=2"])
    with pytest.raises(UserError, match=mismatch):
        make_plan(planned)


def test_batch_that_processes_cannot_share():
    with pytest.raises(UserError, match="3 processes"):
        make_plan(contrastive(), 3)


def test_released_start_is_neither_downloaded_nor_locked(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"model\.size"):
        planned_config(read_recipe(RECIPES / "finetune" / "nlvr2.yaml"))
    assert not list(tmp_path.iterdir())


def test_two_pictures_an_item_are_both_computed():
    small = [
        "model.size=tiny",
        "model.depth=1",
        "run.batch_size=2",
        "run.grad_cache_chunks=1",
        "processors.image.size=64",
    ]
    single = ["model.adapters.image.num_types=1", "model.heads.classifier.inputs=1"]
    nlvr2 = RECIPES / "finetune" / "nlvr2.yaml"
    flops = make_plan(read_recipe(nlvr2, small)).flops_per_step
    flops_of_one = make_plan(read_recipe(nlvr2, [*small, *single])).flops_per_step
    assert flops == pytest.approx(2 * flops_of_one, rel=0.05)
