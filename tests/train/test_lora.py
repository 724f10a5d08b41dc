"""A recipe's adapters: what trains, a run that goes on, the merged model and the adapters alone, and the plan."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.training import (
    MODEL,
    assert_resume_is_exact,
    assert_same_tensors,
    assert_same_weights,
    make_recipe,
)
from torch import nn

from onepeace.embed.embedder import load
from onepeace.errors import UserError
from onepeace.plan.plan import planned_model
from onepeace.train import trainer
from onepeace.train.model_config import make_config
from onepeace.train.trainer import Trainer

peft = pytest.importorskip("peft")

CPU = torch.device("cpu")
TARGETED_LAYERS = ["attn.q", "attn.k", "attn.v", "ffn.image.gate", "ffn.image.up", "ffn.image.down"]
LORA = {
    "rank": 4,
    "alpha": 32,
    "dropout": 0.3,
    "targets": ["blocks.*.attn.[qkv]", "blocks.*.ffn.image.*"],
}
TEXTS = ["a red square", "a blue square"]


@pytest.fixture(scope="module")
def base(root, tmp_path_factory):
    """A model that knows the squares a little."""
    out = tmp_path_factory.mktemp("base")
    return trainer.train(make_recipe(root, out, steps=6, run={"batch_size": 8}))


@pytest.fixture(scope="module")
def adapting(base):
    """Fields of a recipe that trains adapters of that model."""

    def fields(*, model=(), run=(), lora=LORA, **others):
        return {
            "steps": 8,
            "model": {"from": str(base), **dict(model)},
            "run": {"batch_size": 8, "log_every": 2, "save_every": 3, **dict(run)},
            "lora": lora,
            "freeze": {"except": ["heads.image.*", "logit_scale"]},
            "optim": {"lr": 1e-2},
            **others,
        }

    return fields


def test_lora_resume_is_exact_to_the_bit(small_recipe, adapting, tmp_path):
    def make(name, lora=LORA):
        run = {"ema": 0.9, "recompute": "blocks"}
        return small_recipe(name, **adapting(run=run, model={"drop_path": 0.3}, lora=lora))

    # Saved after 3: steps 4 and 5 are done again.
    assert_resume_is_exact(make, stop_at=5, steps=[2, 4, 6, 8], torn=4)

    adapters = {name: load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "cut")}
    assert_same_tensors(adapters["cut"], adapters["whole"])
    with pytest.raises(UserError, match="another lora"):
        trainer.train(make("cut", lora={**LORA, "rank": 8}))


@pytest.fixture(scope="module")
def trained(root, adapting, tmp_path_factory):
    """Recipe of a run that trained only adapters, whose averaged weights are its model."""
    fields = adapting(freeze=(), run={"ema": 0.5})
    recipe = make_recipe(root, tmp_path_factory.mktemp("trained"), **fields)
    trainer.train(recipe)
    return recipe


@pytest.fixture
def out(trained):
    return Path(trained.run.out)


@pytest.fixture
def before(base):
    return load_file(base / "model.safetensors")


@pytest.fixture
def after(out):
    return load_file(out / "model" / "model.safetensors")


def test_merged_model_differs_only_in_targets(before, after):
    targets = set()
    for layer in TARGETED_LAYERS:
        targets |= {f"blocks.0.{layer}.weight", f"blocks.1.{layer}.weight"}

    for name, tensor in after.items():
        assert torch.equal(before[name], tensor) == (name not in targets), name
    for name in targets:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 4


def test_adapters_alone_are_loaded_by_peft(base, out):
    embedder = load(base, device="cpu")
    before = embedder.encode_text(TEXTS)
    merged = load(out / "model", device="cpu").encode_text(TEXTS)
    folder = out / "adapter"

    adapted_module = peft.PeftModel.from_pretrained(embedder.module, str(folder))
    embedder.module = adapted_module.base_model.model

    torch.testing.assert_close(embedder.encode_text(TEXTS), merged, atol=1e-5, rtol=0)
    assert (merged - before).abs().max() > 0.01
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4


def test_only_adapters_and_exceptions_train(small_recipe, adapting):
    run = Trainer(small_recipe(**adapting(steps=2)), CPU)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}

    assert run.take_steps() == 2

    trainable = {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}
    num_adapters = 2 * 2 * len(TARGETED_LAYERS)  # two matrices in two blocks
    assert len(trainable) == num_adapters + 3
    assert {"heads.image.weight", "heads.image.bias", "logit_scale"} <= trainable
    assert sum(len(group["params"]) for group in run.stepper.optimizer.param_groups) == len(trainable)
    moved = {name for name, tensor in run.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"heads.image.weight", "blocks.0.attn.v.lora_A.default.weight"} <= moved <= trainable


def test_evaluation_gets_merged_model(small_recipe, adapting):
    """Merging for a measurement in the middle does not touch the weights that train on."""
    states = []

    def evaluate(model, processors):
        assert not model.training
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"a": 1.0}

    folder = trainer.train(small_recipe("measured", **adapting(run={"eval_every": 4})), evaluate)

    in_the_middle, at_the_end = states
    assert_same_tensors(at_the_end, load_file(folder / "model.safetensors"))
    assert in_the_middle.keys() == at_the_end.keys()
    name = "blocks.0.attn.q.weight"
    assert not torch.equal(in_the_middle[name], at_the_end[name])
    assert_same_weights(trainer.train(small_recipe("quiet", **adapting())), folder)


def test_target_is_not_an_ending_of_longer_names(small_recipe):
    """The masked decoder has blocks too."""
    recipe = small_recipe(
        model={**MODEL, "modalities": ["text", "image"]},
        lora={"targets": ["blocks.0.attn.q"]},
        objective={"contrastive": {}, "denoising/image": {}},
        mask={"image": {"unimodal": 0.75, "unit": "patch"}},
    )

    model = planned_model(recipe, make_config(recipe))

    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable == ["blocks.0.attn.q.lora_A.default.weight", "blocks.0.attn.q.lora_B.default.weight"]
    assert isinstance(model.decoder.blocks[0].attn.q, nn.Linear)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": {**LORA, "rank": 0}}, r"lora\.rank is 0"),
        ({"freeze": ["adapters.*"]}, "freeze: {except: patterns}"),
        ({"freeze": {"except": ["nothing.*"]}}, r"'nothing\.\*'"),
    ],
)
def test_mistakes_in_lora(small_recipe, adapting, fields, message):
    with pytest.raises(UserError, match=message):
        trainer.train(small_recipe(**adapting(**fields)))
