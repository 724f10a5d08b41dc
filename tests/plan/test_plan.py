"""What `onepeace train RECIPE --plan` estimates, against closed forms; tests/results compares it with the dry run."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from support.planned import contrastive
from support.training import terms
from torch import nn

from onepeace.cards import CARDS
from onepeace.cli import main
from onepeace.config import SIZES, Config, ModelConfig, build, write_config
from onepeace.errors import UserError
from onepeace.layers.position import SequencePositions, sequence_buckets, sequence_table_rows
from onepeace.model import ADAPTERS, Adapter, OnePeace, StemOutput
from onepeace.plan.plan import make_plan, plan_text, planned_config
from onepeace.plan.step import Meter, as_on_a_gpu
from onepeace.processors import PROCESSORS, Processor
from onepeace.train.recipe import read_recipe
from onepeace.train.sections import LoraConfig
from onepeace.train.term import Term, TermOptions
from onepeace.train.terms import TERMS

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

# Memory


@cache
def plan_of_images(processes, **run):
    return make_plan(contrastive("image", batch=16, depth=2, **run), processes)


@pytest.fixture(scope="module")
def one_process():
    return plan_of_images(1)


def test_memory_of_weights_and_optimizer(one_process):
    memory = one_process.memory
    assert memory["parameters"] == 4 * one_process.parameters
    assert memory["optimizer"] == pytest.approx(8 * one_process.trained, rel=0.01)


def test_memory_of_an_average_and_recomputation(one_process):
    memory = one_process.memory
    averaged = plan_of_images(1, ema=0.9, recompute="blocks").memory
    assert averaged["average"] == 4 * one_process.trained
    assert averaged["activations and gradients"] < 0.9 * memory["activations and gradients"]


def test_memory_of_kept_shards(one_process):
    sharded = plan_of_images(4, parallel="fsdp", keep_gathered=False).memory
    kept = plan_of_images(4, parallel="fsdp", keep_gathered=True).memory
    assert kept["parameters"] == pytest.approx(one_process.memory["parameters"] / 4, rel=0.05)
    assert sharded["gathered weights"] < 0.8 * kept["gathered weights"]


# Operations


def flops_of_a_pass(config, modality, item):
    with torch.device("meta"):
        model = OnePeace(config.model).eval()
    with as_on_a_gpu():
        model.to_empty(device="cpu")
        meter = Meter(shards=1)
        with torch.no_grad(), meter:
            model({modality: item})
    return meter.flops


def block_flops(length, dim, ffn_dim):
    """Per token projections of attention and a gated FFN, and attention itself."""
    per_token = 2 * (4 * dim**2 + 3 * dim * ffn_dim) + 4 * length * dim
    return length * per_token


@pytest.mark.parametrize(
    ("modality", "item"),
    [("text", {"ids": torch.full((1, 16), 5)}), ("image", {"pixels": torch.zeros(1, 3, 64, 64)})],
)
def test_flops_of_a_pass_are_those_of_the_closed_form(modality, item):
    config = Config(build(ModelConfig, {**SIZES["base"], "depth": 2}, "base"))
    dim = 768
    flops = 2 * block_flops(17, dim, ffn_dim=2048)
    flops += 2 * dim * dim  # projection
    if modality == "image":
        # A picture of 64 px: 16 x 16 windows of 4 x 4 x 3, then 8 x 8 and 4 x 4 of 2 x 2 x inner.
        inner = dim // 4
        flops += 2 * inner * (256 * 48 + 64 * 4 * inner + 16 * 4 * dim)
    assert flops_of_a_pass(config, modality, item) == flops


# Recipes


def test_plan_command_prints_the_plan(tmp_path, capsys):
    planned = contrastive(recompute="blocks", parallel="fsdp")
    file = tmp_path / "recipe.yaml"
    write_config(planned, file)
    assert main(["train", str(file), "--plan", "--processes", "2", "--card", "a100"]) == 0
    printed = capsys.readouterr().out
    assert printed == plan_text(make_plan(planned, 2, CARDS["a100"])) + "\n"
    for words in ("A100", "bfloat16", "recompute: blocks", "fsdp over 2", "not counted: launches"):
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


# What is not of the package


class PointsProcessor(Processor):
    key = "points"

    def example(self, share, generator):
        return torch.zeros(1 + round(39 * share), 3)

    def collate(self, samples):
        return {"points": torch.stack(samples)}


class PointsAdapter(Adapter):
    def __init__(self, options):
        super().__init__(options, sequence_table_rows(8))
        self.proj = nn.Linear(3, options.dim)
        self.pos_embed = SequencePositions(options.dim, num_positions=64)

    def stem_tokens(self, batch):
        tokens = self.proj(batch["points"])
        return StemOutput(tokens, None, (tokens.shape[1],))

    def forward(self, stem, keep=None):
        tokens, mask = self.with_cls(stem)
        buckets = sequence_buckets(tokens.shape[1], 8, tokens.device)
        return self.assemble(tokens + self.pos_embed(stem.grid), mask, stem, buckets, self.bias_tables(), keep)

    def token_lengths(self, batch):
        return torch.full((len(batch["points"]),), batch["points"].shape[1])


class Wide(Term[TermOptions]):
    """A layer with a million weights."""

    Options = TermOptions

    def __init__(self, options, model, prepared=None):
        super().__init__(options, model)
        self.layer = nn.Linear(model.config.embed_dim, WEIGHTS // model.config.embed_dim, bias=False)

    def outputs(self, passes):
        return self.layer(passes.embedding("text"))

    def loss(self, outputs, batch, model):
        return {self.options.name: outputs.square().mean()}


WEIGHTS = 2**20


def test_modality_and_term_of_ones_own_are_planned(monkeypatch):
    monkeypatch.setitem(PROCESSORS, "points", PointsProcessor)
    monkeypatch.setitem(ADAPTERS, "points", PointsAdapter)
    monkeypatch.setitem(TERMS, "wide", Wide)
    without = contrastive("points", adapters={"points": {}})

    plan = make_plan(without)
    wider = make_plan(replace(without, objective=terms({"contrastive": {}, "wide/text": {}})))

    assert plan.flops_per_item["points+text"] > 0
    assert wider.memory["parameters"] - plan.memory["parameters"] == 4 * WEIGHTS
    assert wider.flops_per_step - plan.flops_per_step == 3 * 2 * WEIGHTS * without.run.batch_size


def test_modality_whose_size_nobody_says(monkeypatch):
    monkeypatch.setitem(PROCESSORS, "points", type("Points", (Processor,), {"key": "points"}))
    monkeypatch.setitem(ADAPTERS, "points", PointsAdapter)
    with pytest.raises(UserError, match=r"Points\.example"):
        make_plan(contrastive("points", adapters={"points": {}}))


def test_low_rank_adapters_are_planned():
    recipe = contrastive("image", depth=2)
    adapted = replace(recipe, lora=LoraConfig(rank=4, targets=("blocks.*.attn.[qv]",)))
    plan = make_plan(adapted)
    assert plan.trained == 2 * 2 * 4 * (64 + 64)
    assert plan.memory["optimizer"] == pytest.approx(8 * plan.trained, rel=0.01)
    assert plan.flops_per_step < 0.8 * make_plan(recipe).flops_per_step
