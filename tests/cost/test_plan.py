"""What `onepeace train RECIPE --plan` says, against real steps at small sizes: bytes that are alive, and FLOPs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.training import MODEL, terms
from support.training import recipe as small_recipe
from torch.nn.attention import SDPBackend, sdpa_kernel

from onepeace.cli import main
from onepeace.config import SIZES, Config, ModelConfig, build, write_config
from onepeace.cost import plan
from onepeace.cost.inputs import item_batch, largest_items, pair_batch
from onepeace.cost.measure import Live, keep_as_on_a_gpu
from onepeace.errors import UserError
from onepeace.layers.recompute import set_recompute
from onepeace.model import OnePeace
from onepeace.train.model_config import make_config
from onepeace.train.objective import Objective
from onepeace.train.optim import freeze, make_optimizer
from onepeace.train.recipe import Recipe, read_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "pretrain"
SMALL = {"dim": 64, "embed_dim": 32, "num_heads": 4, "ffn_dim": 160}
DENOISING = {"scale": 2.5, "label_smoothing": 0.1}
TEXT = {"vocab_size": 300, "num_positions": 40, "num_buckets": 8}
STAGES = {
    "image": {
        "objective": terms({"contrastive": {}, "denoising/text": DENOISING, "denoising/image": DENOISING,
                            "denoising/text+image": DENOISING}),
        "mask": {"text": {"unit": "word", "unimodal": 0.15, "joint": 0.4},
                 "image": {"unit": "patch", "unimodal": 0.75, "joint": 0.6875}},
    },
    "audio": {
        "objective": terms({"contrastive": {}, "denoising/audio": {**DENOISING, "teacher": "joint"},
                            "denoising/text+audio": DENOISING}),
        "mask": {"text": {"unit": "word", "joint": 0.4},
                 "audio": {"unit": "span", "unimodal": 0.55, "joint": 0.45}},
        "freeze": {"except": ["adapters.audio.*", "norms.audio.*", "blocks.*.ffn.audio.*", "heads.audio.*",
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


@pytest.mark.parametrize(
    ("other", "run"),
    [
        pytest.param("image", {"precision": "float32"}, marks=pytest.mark.slow),
        ("audio", {"recompute": "blocks"}),
        pytest.param("audio", {}, marks=pytest.mark.slow),
        pytest.param("audio", {"grad_cache_chunks": 2}, marks=pytest.mark.slow),
    ],
)
def test_plan_is_what_a_real_step_takes(other, run):
    wanted = recipe(other, **run)
    config = make_config(wanted)
    count = wanted.batch_size(wanted.data.train[0].name)
    objective = Objective(OnePeace(config.model), wanted.terms, {})
    model = objective.model
    if wanted.freeze:
        freeze(model, wanted.freeze)
    set_recompute(model, wanted.run.recompute)
    items = largest_items(config, wanted.data.train[0].pair, count)
    batch = pair_batch(wanted, model, f"{other}+text", items).split(wanted.run.grad_cache_chunks, model.adapters)
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    gradients = [parameter.grad for parameter in objective.parameters() if parameter.requires_grad]
    tables = [p for name, p in model.named_parameters() if ".bias_tables." in name and p.requires_grad]
    keep_as_on_a_gpu(model)
    with Live([*objective.parameters(), gradients, items]) as real, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.autocast("cpu", torch.bfloat16, enabled=wanted.run.precision == "bfloat16"):
            loss = objective(batch)["loss"]
        loss.backward()
    for table in tables:
        table.requires_grad_(True)
    optimizer = make_optimizer(model, wanted.optim)
    optimizer.step()

    found = plan.make_plan(wanted)
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    held = [*objective.parameters(), *gradients, *states]
    assert found.memory.states == pytest.approx(sum(tensor.nbytes for tensor in held), rel=0.01)
    assert found.memory.activations == pytest.approx(real.peak, rel=0.02)
    assert found.memory.needed > 1.05 * sum(found.memory)
    assert found.flops_per_step == pytest.approx(real.flops, rel=1e-3)


def test_many_items_follow_from_few(monkeypatch):
    wanted = recipe("image", batch=12, recompute="blocks")
    every = plan.make_plan(wanted)
    monkeypatch.setattr(plan, "MEASURED", 8)
    few = plan.make_plan(wanted)
    assert few.flops_per_step == pytest.approx(every.flops_per_step, rel=1e-4)
    # The logits of so few grow with their square, those of more fill one tile after another.
    assert few.memory.activations == pytest.approx(every.memory.activations, rel=0.05)


def test_memory_by_way_and_processes():
    def memory(processes, **fields):
        wanted = recipe("audio", **fields)
        return plan.memory_of(plan.planned_model(wanted, make_config(wanted)), wanted, processes, 7)

    whole, ddp, fsdp = memory(1), memory(4, ema=0.99), memory(4, ema=0.99, parallel="fsdp")
    assert whole.exchange == 0
    assert ddp.states - whole.states == ddp.exchange > 0  # the average is as large as the gradients
    assert fsdp.states == pytest.approx(ddp.states / 4, abs=1)
    assert ddp.activations == fsdp.activations == 7
    gathered = [memory(4, depth=depth, parallel="fsdp").exchange for depth in (3, 6)]
    assert gathered[0] == gathered[1] > 0  # two blocks at a time, however many there are


def contrastive(**fields):
    """Without masked passes: the fewest operations."""
    return replace(recipe("audio", **fields), objective=terms({"contrastive": {}}), mask={}, freeze=())


def test_further_blocks_cost_as_much_as_the_second():
    wanted = contrastive(depth=3)
    config = make_config(wanted)
    guessed, whole = (cost(wanted, config, "audio+text", 4) for cost in (plan.cost_of_depth, plan.measured_cost))
    assert guessed.flops == pytest.approx(whole.flops, rel=1e-3)
    assert guessed.peak_bytes == pytest.approx(whole.peak_bytes, rel=0.03)


def test_plan_command_prints_the_plan(tmp_path, capsys):
    wanted = contrastive(recompute="blocks", parallel="fsdp")
    write_config(wanted, tmp_path / "recipe.yaml")
    assert main(["train", str(tmp_path / "recipe.yaml"), "--plan", "--processes", "2"]) == 0
    numbers = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line]
    memory = plan.make_plan(wanted, 2).memory
    assert [f"{size / 1e9:.2f}" for size in (*memory, memory.needed)] == numbers[3:7]


@pytest.mark.parametrize("name", ["tiny_audio_text", "tiny_joint", "base_audio_text"])
def test_size_says_what_a_start_that_is_not_there_will_be(name):
    wanted = read_recipe(RECIPES / f"{name}.yaml")
    assert plan.planned_config(wanted).model.dim == {"tiny": 256, "base": 768}[wanted.start.size]
    with pytest.raises(UserError, match=r"model\.from .* model\.size"):
        plan.planned_config(read_recipe(RECIPES / f"{name}.yaml", ["model.size=null"]))


@pytest.mark.parametrize("name", ["pretrain/tiny_longer", "finetune/avqa"])
def test_a_size_that_does_not_fit_the_recipe_is_an_error_for_the_user(name):
    """Another stem's patches, and longer texts than the size has positions."""
    with pytest.raises(UserError):
        plan.make_plan(read_recipe(RECIPES.parent / f"{name}.yaml", ["model.size=tiny", "run.batch_size=2"]))


def test_a_recipe_from_a_released_model_is_planned_by_size_and_downloads_nothing(tmp_path, monkeypatch):
    """Of two pictures an item (NLVR2), each computed."""
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"model\.from .* model\.size"):
        plan.planned_config(read_recipe(RECIPES.parent / "finetune" / "nlvr2.yaml"))
    assert not list(tmp_path.iterdir())  # no lock of a download
    small = [
        "model.size=tiny",
        "model.depth=1",
        "run.batch_size=2",
        "run.grad_cache_chunks=1",
        "processors.image.size=64",
    ]
    flops = plan.make_plan(read_recipe(RECIPES.parent / "finetune" / "nlvr2.yaml", small)).flops_per_step
    one = ["model.adapters.image.num_types=1", "model.heads.classifier.inputs=1"]
    assert (
        1.9
        < flops / plan.make_plan(read_recipe(RECIPES.parent / "finetune" / "nlvr2.yaml", [*small, *one])).flops_per_step
        < 2.1
    )


def flops(tmp_path, views):
    adapters = {"text": TEXT, "audio": {"stem": "aisfx", "width": 4, "num_buckets": 8, "pos_depth": 1, "pos_groups": 4}}
    model = {**MODEL, "adapters": adapters, "modalities": [*adapters], "projections": [*adapters]}
    data = {"root": "none", "train": [{"shards": "tones.tar", "pair": ["audio", "text"]}], "stem_views": views}
    freeze = ["adapters.audio.stem.network.*"]
    wanted = small_recipe(tmp_path, tmp_path, pair="audio", model=model, data=data, freeze=freeze)
    return plan.make_plan(wanted).flops_per_item["audio+text"]


def test_a_step_over_kept_features_costs_the_transformer_only(tmp_path):
    live, kept = flops(tmp_path, {}), flops(tmp_path, {"audio": 2})
    # Of 15 seconds: 72 bands from 376 frequencies of 320 windows, then pairs of 3x3 convolutions, each over a quarter
    # of the places before it and with twice the channels.
    bands = 2 * 320 * 376 * 72
    network = sum(2 * 9 * 320 * 72 // 4**i * ((2 * 2**i if i else 1) + 4 * 2**i) * 4 * 2**i for i in range(4))
    assert 0.97 * (bands + network) < live - kept < 1.03 * (bands + network)


def test_a_caption_head_is_planned(tmp_path):
    head = {"kind": "caption", "on": ["image"], "vocab_size": 400, "dim": 32, "depth": 1, "num_heads": 2, "ffn_dim": 64}
    model = {**MODEL, "heads": {"caption": head}}
    found = plan.make_plan(small_recipe(tmp_path, tmp_path, model=model, objective={"captioning/image": {}}))
    assert found.flops_per_step > 0
    assert found.memory.activations > 24 * 15 * 400 * 4  # 24 items with logits of 400 words at 15 places or more


def flops_of_a_pass(config, key, size):
    with torch.device("meta"):  # values do not matter, and drawing them would take most of the time
        model = OnePeace(config.model)
    model.to_empty(device="cpu").eval()
    with torch.no_grad(), Live() as live:
        model({key: item_batch(config, key, size)})
    return live.flops


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
