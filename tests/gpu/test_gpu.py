"""What can only be seen on a GPU: the original's numbers on it, processes that share GPUs, compiled blocks, memory.

`make gpu` runs these tests, and on the GPU also the steps of all recipes.
"""

import math

import pytest
import torch
from support.golden_cases import case, golden_model, place, text_batch
from support.processes import start, train
from support.small_shards import write_shards
from support.training import DENOISING, MODEL, recipe, terms
from train.test_golden_pretrain import STAGES, step

from onepeace.config import write_config
from onepeace.train import loop
from onepeace.train.log import read_log
from onepeace.train.objective import Objective

pytestmark = pytest.mark.gpu

PRECISIONS = [(torch.float32, 2e-4), (torch.bfloat16, 3e-2)]
"""Autocast dtype, and largest relative difference to the original's numbers in float32."""


def move(batch, device):
    return {key: {name: tensor.to(device) for name, tensor in inputs.items()} for key, inputs in batch.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), 12, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_golden_losses_and_gradients(device, stage, dtype, tolerance):
    model, batch, expected = step(stage)
    objective = Objective(model, terms(STAGES[stage]["terms"])).to(device)
    batch = batch.measured(model.adapters).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = objective(batch)
    for theirs, ours in STAGES[stage]["names"].items():
        assert losses[ours].item() == pytest.approx(expected.outputs[theirs].item(), rel=tolerance)
    losses["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    compared = 0
    for theirs, gradient in expected.grads.items():
        name = place(theirs)[0]
        if name in gradients and gradients[name].shape == gradient.shape:
            difference = (gradients[name].cpu() - gradient).norm() / gradient.norm().clamp_min(1e-3)
            assert difference < 5 * tolerance, name
            compared += 1
    assert compared > 20


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_golden_vectors(device, dtype, tolerance):
    model = golden_model("text image audio", decoder=True, projections=True).eval().to(device)
    embed = case("embed")
    batch = move({"text": text_batch(embed.inputs["text"]), "image": {"pixels": embed.inputs["image"].float()}}, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        vectors = model(batch)
    for key, unit_vectors in vectors.items():
        cosines = (unit_vectors.cpu() * embed.outputs[f"{key}_embed"]).sum(1)
        assert (1 - cosines).max() < tolerance, key


def run_losses(folder):
    lines = read_log(folder / "log.jsonl")
    return [{name: value for name, value in line.items() if "/" in name or name == "loss"} for line in lines]


def test_resumed_run_equals_one_that_was_never_stopped(root, tmp_path):
    wanted = [recipe(root, tmp_path / name, steps=6, run={"log_every": 1}, **DENOISING) for name in ("whole", "cut")]
    loop.train(wanted[0])
    loop.train(wanted[1], stop_at=3)
    loop.train(wanted[1])
    for whole, cut in zip(run_losses(tmp_path / "whole"), run_losses(tmp_path / "cut"), strict=True):
        assert cut == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_gpus_train_like_one(root, tmp_path, way, precision):
    gpus = torch.cuda.device_count()
    if gpus < 2:
        pytest.skip(f"needs two GPUs, and there are {gpus}")
    run = {"batch_size": 4 * gpus, "log_every": 1, "precision": precision}
    path = tmp_path / "recipe.yaml"
    terms = {name: {**term, "keys": "global"} for name, term in DENOISING["objective"].items() if "/" in name}
    write_config(recipe(root, tmp_path / "one", steps=3, run=run, objective=terms, mask=DENOISING["mask"]), path)
    start(1, train, path, [])
    start(gpus, train, path, [f"run.out={tmp_path / 'all'}", f"run.parallel={way}"])
    for alone, spread in zip(run_losses(tmp_path / "one"), run_losses(tmp_path / "all"), strict=True):
        assert spread == pytest.approx(alone, rel=1e-3 if precision == "float32" else 0.05)


def test_compiled_blocks_train_like_others(root, tmp_path):
    model = {**MODEL, "dim": 512, "num_heads": 8, "ffn_dim": 512}  # narrower ones are not compiled
    for name, compiled in (("eager", False), ("compiled", True)):
        run = {"batch_size": 4, "log_every": 1, "compile": compiled}
        loop.train(recipe(root, tmp_path / name, steps=2, model=model, run=run, **DENOISING))
    for eager, compiled in zip(run_losses(tmp_path / "eager"), run_losses(tmp_path / "compiled"), strict=True):
        assert compiled == pytest.approx(eager, rel=1e-3)
        assert all(math.isfinite(loss) for loss in compiled.values())
