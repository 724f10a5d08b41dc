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
    """A recipe that trains adapters of the model ``base``."""
    return recipe(
        root,
        out,
        steps=steps,
        run={"batch_size": 8, "log_every": 2, "save_every": 3, **dict(run)},
        model={"from": str(base), **dict(model)},
        freeze=freeze,
        lora={"rank": 4, "alpha": 32, "dropout": 0.3, "targets": TARGETS, **dict(lora)},
        optim={"lr": 1e-2},
    )


def lines_of(folder):
    """The log of a run, without the step after which the other was cut off."""
    return [line for line in logged(folder) if line["step"] != 4]


def test_resume_is_exact_to_the_bit(root, base, tmp_path):
    fields = {"run": {"ema": 0.9, "recompute": "blocks"}, "model": {"drop_path": 0.3}}

    def make(name, **changes):
        return adapted(root, base, tmp_path / name, **fields, **changes)

    whole = loop.train(make("whole"))
    loop.train(make("cut"), stop_at=5)  # saved after 3: steps 4 and 5 are done again
    resumed = loop.train(make("cut"))
    assert_same_weights(resumed, whole)
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "cut")
    assert [line["step"] for line in lines_of(tmp_path / "whole")] == [2, 6, 8]
    first = load_file(tmp_path / "whole/adapter/adapter_model.safetensors")
    second = load_file(tmp_path / "cut/adapter/adapter_model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    with pytest.raises(UserError, match="another lora"):
        loop.train(make("cut", lora={"rank": 8}))


@pytest.fixture(scope="module", params=[None, 0.5], ids=["weights", "average"])
def trained(request, root, base, tmp_path_factory):
    """Folder of a run that trained only adapters, with and without averaged weights, and its recipe."""
    out = tmp_path_factory.mktemp("trained")
    wanted = adapted(root, base, out, freeze=(), run={"ema": request.param})
    loop.train(wanted)
    return out, wanted


def test_model_is_written_merged(base, trained):
    out, wanted = trained
    before = load_file(base / "model.safetensors")
    after = load_file(out / "model" / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in after.items()}
    assert shapes == expected(make_config(wanted))
    targets = set()
    for block in ("blocks.0", "blocks.1"):
        for layer in ("attn.q", "attn.k", "attn.v", "ffn.image.gate", "ffn.image.up", "ffn.image.down"):
            targets.add(f"{block}.{layer}.weight")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == targets
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 4

    saved = read_newest(out)
    weights = {name.removeprefix("model."): tensor for name, tensor in saved.model.items()}
    weights.update(saved.ema)
    layer = "blocks.1.ffn.image.down"
    product = weights[f"{layer}.lora_B.default.weight"] @ weights[f"{layer}.lora_A.default.weight"]
    torch.testing.assert_close(after[f"{layer}.weight"], before[f"{layer}.weight"] + 32 / 4 * product)


def test_adapters_are_written_alone_for_peft(base, trained):
    out, _ = trained
    names = {path.name for path in (out / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((out / "adapter/adapter_config.json").read_text())["r"] == 4
    embedder = load(base, device="cpu")
    before = embedder.encode_text(TEXTS)
    adapted_module = peft.PeftModel.from_pretrained(embedder.module, str(out / "adapter"))
    embedder.module = adapted_module.base_model.model
    merged = load(out / "model", device="cpu").encode_text(TEXTS)
    torch.testing.assert_close(embedder.encode_text(TEXTS), merged, atol=1e-5, rtol=0)
    assert (merged - before).abs().max() > 0.01


def test_only_adapters_and_what_is_excepted_train(root, base, tmp_path):
    run = Run(adapted(root, base, tmp_path, steps=2), torch.device("cpu"))
    parameters = dict(run.model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    excepted = {name for name in trained if ".lora_" not in name}
    assert excepted == {"heads.image.weight", "heads.image.bias", "logit_scale"}
    assert len(trained) == len(excepted) + 2 * 2 * (3 + 3)
    assert sum(len(group["params"]) for group in run.optimizer.param_groups) == len(trained)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    assert train_steps(run, None, None, lambda: False) == 2
    moved = {name for name, parameter in parameters.items() if not torch.equal(parameter, start[name])}
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
    in_the_middle, at_the_end = seen
    assert in_the_middle.keys() == at_the_end.keys() == final.keys()
    for name in final:
        assert torch.equal(at_the_end[name], final[name]), name
    # The first one was measured in the middle, and to merge it did not touch the weights that train on.
    assert not torch.equal(in_the_middle["blocks.0.attn.q.weight"], final["blocks.0.attn.q.weight"])
    assert_same_weights(loop.train(adapted(root, base, tmp_path / "quiet")), folder)


def test_a_target_is_not_an_ending_of_other_names():
    """The masked decoder has blocks too."""
    wanted = recipe(
        "x",
        "x",
        model={**MODEL, "modalities": ["text", "image"]},
        lora={"targets": ["blocks.0.attn.q"]},
        objective={"contrastive": {}, "denoising/image": {}},
        mask={"image": {"unimodal": 0.75, "unit": "patch"}},
    )
    model = planned_model(wanted, make_config(wanted))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert names == ["blocks.0.attn.q.lora_A.default.weight", "blocks.0.attn.q.lora_B.default.weight"]
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
