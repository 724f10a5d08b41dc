"""What `onepeace train RECIPE --plan` estimates, against closed forms; tests/results compares it with the dry run."""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from support.planned import contrastive, planned_recipe
from torch._subclasses.fake_tensor import FakeTensorMode

from onepeace.cards import CARDS
from onepeace.cli import main
from onepeace.config import SIZES, Config, ModelConfig, build, write_config
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.plan.plan import UTILISATION, make_plan, plan_text, planned_config, step_time
from onepeace.plan.step import Group, Meter, StepCost, as_first_of, as_on_a_gpu
from onepeace.plan.synthetic import item_batch
from onepeace.train import parallel
from onepeace.train.recipe import read_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

# Memory


@cache
def plan_of_images(processes, **run):
    return make_plan(contrastive("image", batch=16, depth=2, **run), processes)


@pytest.fixture(scope="module")
def one_process():
    return plan_of_images(1)


def test_memory_of_weights_and_optimizer(one_process):
    memory = one_process.step.memory
    assert memory["parameters"] == 4 * one_process.parameters
    assert memory["optimizer"] == pytest.approx(8 * one_process.trained, rel=0.01)


def test_memory_of_an_average_and_recomputation(one_process):
    memory = one_process.step.memory
    averaged = plan_of_images(1, ema=0.9, recompute="blocks").step.memory
    assert averaged["other"] - memory["other"] == 4 * one_process.trained
    assert averaged["activations"] < 0.9 * memory["activations"]


def test_memory_of_kept_shards(one_process):
    sharded = plan_of_images(4, parallel="fsdp", keep_gathered=False).step.memory
    kept = plan_of_images(4, parallel="fsdp", keep_gathered=True).step.memory
    assert kept["parameters"] == pytest.approx(one_process.step.memory["parameters"] / 4, rel=0.05)
    assert sharded["gathered weights"] < 0.8 * kept["gathered weights"]


# Time


H100_FLOPS = UTILISATION * 989e12
OTHER_KERNELS = 0.1
"""Seconds of kernels that read and write a tenth of what an H100 does in a second."""
LINKS = 450e9
NETWORK = 50e9


def time_of_a_step(flops, operation, size, group):
    cost = StepCost(
        memory=Counter(),
        flops=Counter({("audio+text", torch.bfloat16): flops}),
        moved=335 * 10**9,
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
    ],
)
def test_slowest_part_limits_a_step(flops, size, group, limit):
    time = time_of_a_step(flops, "allreduce", size, group)
    assert time.limit == limit
    assert time.compute == pytest.approx(flops / H100_FLOPS + OTHER_KERNELS)
    sent = 2 * size * (group.size - 1) / group.size
    if group.size == group.on_machine:
        assert time.links == pytest.approx(sent / LINKS)
        assert time.network == 0
    else:
        assert time.links == 0
        assert time.network == pytest.approx(sent / (NETWORK * group.on_machine))


# Operations


def flops_of_a_pass(config, modality, size):
    with torch.device("meta"):
        model = OnePeace(config.model).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_a_gpu():
        model.to_empty(device="cpu")
        meter = Meter(model.parameters())
        with torch.no_grad(), meter:
            model({modality: item_batch(config, modality, size)})
    return meter.flops.total()


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


@pytest.mark.parametrize("is_detached", [True, False])
def test_gathered_keys_without_a_gradient_are_not_summed(is_detached):
    traffic = Counter()
    x = torch.ones(2, 8, requires_grad=True)
    with as_first_of(4, 2, traffic):
        keys = parallel.gather(x)
        ((keys.detach() if is_detached else keys) @ x.T).sum().backward()

    everybody = Group(4, 2)
    size = 4 * x.nbytes
    assert traffic == {("allgather", everybody): size} | ({} if is_detached else {("allreduce", everybody): size})
