"""A recipe's adapters: what trains, a run that goes on, the merged model and the adapters alone, and the plan."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import read_newest
from support.training import MODEL, assert_same_weights, logged, recipe
from torch import nn

from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.hub.weights import expected
from onepeace.plan.plan import make_plan, planned_model
from onepeace.train import loop
from onepeace.train.loop import train_steps
from onepeace.train.model_config import make_config
from onepeace.train.run import Run

peft = pytest.importorskip("peft")

TARGETS = ["blocks.*.attn.[qkv]", "blocks.*.ffn.image.*"]
TRAINED = {"except": ["heads.image.*", "logit_scale"]}
TEXTS = ["a red square", "a blue square"]


@pytest.fixture(scope="module")
def base(root, tmp_path_factory):
    """A model that knows the squares a little."""
    return loop.train(recipe(root, tmp_path_factory.mktemp("base"), steps=6, run={"batch_size": 8}))


def adapted(root, base, out, steps=8, lora=(), freeze=TRAINED, run=(), model=()):
    lora = {"rank": 4, "alpha": 32, "dropout": 0.3, "targets": TARGETS, **dict(lora)}
    run = {"batch_size": 8, "log_every": 2, "save_every": 3, **dict(run)}
    model = {"from": str(base), **dict(model)}
    return recipe(root, out, steps=steps, run=run, model=model, freeze=freeze, lora=lora, optim={"lr": 1e-2})


def test_a_run_that_is_cut_off_goes_on_to_the_bit(root, base, tmp_path):
    run, model = {"ema": 0.9, "recompute": "blocks"}, {"drop_path": 0.3}

    def make(name):
        return adapted(root, base, tmp_path / name, run=run, model=model)

    whole = loop.train(make("whole"))
    loop.train(make("cut"), stop_at=5)  # saved after 3: steps 4 and 5 are done again
    assert_same_weights(loop.train(make("cut")), whole)
    lines = [[line for line in logged(tmp_path / name) if line["step"] != 4] for name in ("whole", "cut")]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [2, 6, 8]
    adapters = [load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "cut")]
    assert adapters[0].keys() == adapters[1].keys()
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    with pytest.raises(UserError, match="another lora"):
        loop.train(adapted(root, base, tmp_path / "cut", lora={"rank": 8}, run=run, model=model))


@pytest.mark.parametrize("ema", [None, 0.5])
def test_the_model_is_written_merged_and_its_adapters_alone(root, base, tmp_path, ema):
    wanted = adapted(root, base, tmp_path, freeze=(), run={"ema": ema})
    folder = loop.train(wanted)
    before, after = (load_file(path / "model.safetensors") for path in (base, folder))
    assert {name: tuple(tensor.shape) for name, tensor in after.items()} == expected(make_config(wanted))
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    layers = [f"attn.{name}" for name in "qkv"] + [f"ffn.image.{name}" for name in ("gate", "up", "down")]
    assert changed == {f"blocks.{i}.{layer}.weight" for i in range(2) for layer in layers}
    assert all(torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 4 for name in changed)

    saved = read_newest(tmp_path)
    kept = {**{name.removeprefix("model."): tensor for name, tensor in saved.model.items()}, **saved.ema}
    layer = "blocks.1.ffn.image.down"
    product = kept[f"{layer}.lora_B.default.weight"] @ kept[f"{layer}.lora_A.default.weight"]
    torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] + 32 / 4 * product)

    written = sorted(path.name for path in (tmp_path / "adapter").iterdir())
    assert written == ["adapter_config.json", "adapter_model.safetensors"]
    embedder = load(base, device="cpu")
    plain = embedder.encode_text(TEXTS)
    embedder.module = peft.PeftModel.from_pretrained(embedder.module, str(tmp_path / "adapter")).base_model.model
    vectors = load(folder, device="cpu").encode_text(TEXTS)
    torch.testing.assert_close(embedder.encode_text(TEXTS), vectors, atol=1e-5, rtol=0)
    assert (vectors - plain).abs().max() > 0.01
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 4


def test_only_adapters_and_what_is_excepted_train(root, base, tmp_path):
    wanted = adapted(root, base, tmp_path, steps=2)
    run = Run(wanted, torch.device("cpu"))
    trained = {name for name, p in run.model.named_parameters() if p.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {
        "heads.image.weight",
        "heads.image.bias",
        "logit_scale",
    }
    assert len(trained) == 3 + 2 * 2 * (3 + 3)
    held = sum(len(group["params"]) for group in run.optimizer.param_groups)
    assert held == len(trained)
    start = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    assert train_steps(run, None, None, lambda: False) == 2
    moved = {name for name, p in run.model.named_parameters() if not torch.equal(p, start[name])}
    assert moved <= trained
    assert {"heads.image.weight", "blocks.0.attn.v.lora_A.default.weight"} <= moved


def test_the_evaluation_sees_the_merged_model(root, base, tmp_path):
    seen = []

    def evaluate(model, processors):
        assert not model.training
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"a": 1.0}

    folder = loop.train(adapted(root, base, tmp_path, run={"eval_every": 4}), evaluate)
    final = load_file(folder / "model.safetensors")
    assert len(seen) == 2
    assert all(state.keys() == final.keys() for state in seen)
    assert all(torch.equal(seen[1][name], final[name]) for name in final)
    # The first one was measured in the middle, and to merge it did not touch the weights that train on.
    assert not torch.equal(seen[0]["blocks.0.attn.q.weight"], final["blocks.0.attn.q.weight"])
    assert_same_weights(loop.train(adapted(root, base, tmp_path / "quiet")), folder)


def test_a_target_is_not_an_ending_of_other_names():
    """The masked decoder has blocks too."""
    content = {**MODEL, "modalities": ["text", "image"]}
    wanted = recipe("x", "x", model=content, lora={"targets": ["blocks.0.attn.q"]}, objective={
        "contrastive": {}, "denoising/image": {}}, mask={"image": {"unimodal": 0.75, "unit": "patch"}})  # fmt: skip
    model = planned_model(wanted, make_config(wanted))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names == [f"blocks.0.attn.q.lora_{side}.default.weight" for side in "AB"]
    assert isinstance(model.decoder.blocks[0].attn.q, nn.Linear)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": {"rank": 0}}, r"lora\.rank is 0; it should be 1 or more"),
        ({"freeze": ["adapters.*"]}, "give freeze: {except: patterns}"),
        ({"freeze": {"except": ["nothing.*"]}}, r"'nothing\.\*' matches none"),
    ],
)
def test_mistakes_are_named(root, base, tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        loop.train(adapted(root, base, tmp_path, **fields))


def test_without_peft_the_first_line_says_what_to_install(root, base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r'needs peft: pip install "onepeace\[lora\]"'):
        loop.train(adapted(root, base, tmp_path))
    assert not (tmp_path / "tokenizer.json").exists()


def test_the_plan_counts_what_trains(root, base, tmp_path):
    wanted = adapted(root, base, tmp_path, steps=2, run={"ema": 0.9})
    run = Run(wanted, torch.device("cpu"))
    train_steps(run, None, None, lambda: False)
    plan = make_plan(wanted)
    trained = [p for p in run.model.parameters() if p.requires_grad]
    states = [value for state in run.optimizer.state.values() for value in state.values()]
    memory = plan.step.memory
    assert memory["parameters"] == sum(tensor.nbytes for tensor in run.model.parameters())
    assert memory["optimizer"] == sum(tensor.nbytes for tensor in states)
    without_average = make_plan(adapted(root, base, tmp_path, steps=2)).step.memory
    assert memory["other"] - without_average["other"] == sum(tensor.nbytes for tensor in run.average.values())
    assert plan.trained == sum(p.numel() for p in trained)
    whole = recipe(root, tmp_path, steps=2, run={"batch_size": 8}, model={"from": str(base)})
    assert memory["activations"] < make_plan(whole).step.memory["activations"]
