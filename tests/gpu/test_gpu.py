"""What can only be seen on a GPU: the original's numbers on it, processes that share GPUs, compiled blocks, memory.

`make gpu` runs these tests, and on the GPU also the steps of all recipes.
"""

import pytest
import torch
from support.golden_cases import case, golden_model, place, text_batch
from support.golden_stages import STAGES, golden_step
from support.processes import start, train
from support.small_models import small_model
from support.small_shards import write_shards
from support.training import DENOISING, MODEL, assert_same_losses, make_recipe, terms

from onepeace.config import write_config
from onepeace.model import encoder
from onepeace.train import trainer
from onepeace.train.objective import Objective

pytestmark = pytest.mark.gpu

PRECISIONS = [(torch.float32, 2e-4), (torch.bfloat16, 3e-2)]
"""Autocast dtype, and largest relative difference to the original's numbers in float32."""


def autocast(device, dtype):
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), 12, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_golden_losses_and_gradients(device, stage, dtype, tolerance):
    model, batch, golden = golden_step(stage)
    objective = Objective(model, terms(STAGES[stage].terms)).to(device)
    with autocast(device, dtype):
        losses = objective(batch.measured(model.adapters).to(device))
    losses["loss"].backward()

    for original_name, name in STAGES[stage].loss_names.items():
        expected = golden.outputs[original_name].item()
        assert losses[name].item() == pytest.approx(expected, rel=tolerance)
    num_compared = 0
    for original_name, expected in golden.grads.items():
        name, _ = place(original_name)
        gradient = model.get_parameter(name).grad if name else None
        if gradient is None or gradient.shape != expected.shape:
            continue
        difference = (gradient.cpu() - expected).norm()
        assert difference < 5 * tolerance * max(expected.norm(), 1e-3), name
        num_compared += 1
    assert num_compared > 20


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_golden_vectors(device, dtype, tolerance):
    model = golden_model("text image audio", decoder=True, projections=True).eval().to(device)
    golden = case("embed")
    ids = golden.inputs["text"].to(device)
    pixels = golden.inputs["image"].float().to(device)
    with autocast(device, dtype):
        vectors = model({"text": text_batch(ids), "image": {"pixels": pixels}})
    for key, unit_vectors in vectors.items():
        cosines = (unit_vectors.cpu() * golden.outputs[f"{key}_embed"]).sum(1)
        assert (1 - cosines).max() < tolerance, key


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_padding_beside_a_bias_equals_padding_in_it(device, monkeypatch, dtype, tolerance):
    """Features and gradients of sounds whose attention the kernels of the GPU compute in both forms."""
    model = small_model("audio").to(device)
    waveforms = torch.randn(3, 6000, device=device)
    lengths = torch.tensor([6000, 3300, 1700], device=device)
    results = []
    for folded in ((), (device.type,)):
        monkeypatch.setattr(encoder, "FOLDED", folded)
        monkeypatch.setattr(encoder, "SHORT", 0)
        model.zero_grad()
        with autocast(device, dtype):
            vectors = model({"audio": {"waveform": waveforms, "lengths": lengths}})["audio"]
        vectors.float()[:, 0].sum().backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append([vectors, *gradients])
    for beside, inside in zip(*results, strict=True):
        assert (beside - inside).norm() <= tolerance * max(inside.norm(), 1e-3)


def test_resumed_run_equals_one_that_was_never_stopped(root, tmp_path):
    options = {"steps": 6, "run": {"log_every": 1}, **DENOISING}
    whole = make_recipe(root, tmp_path / "whole", **options)
    stopped = make_recipe(root, tmp_path / "stopped", **options)
    trainer.train(whole)
    trainer.train(stopped, stop_at=3)
    trainer.train(stopped)
    assert_same_losses(tmp_path / "stopped", tmp_path / "whole", 1e-3)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.05)])
def test_all_gpus_train_like_one(root, tmp_path, parallel, precision, tolerance):
    gpus = torch.cuda.device_count()
    if gpus < 2:
        pytest.skip(f"needs two GPUs, and there are {gpus}")
    objective = {}
    for name, term in DENOISING["objective"].items():
        if "/" in name:
            objective[name] = {**term, "keys": "global"}
    run = {"batch_size": 4 * gpus, "log_every": 1, "precision": precision}
    path = tmp_path / "recipe.yaml"
    mask = DENOISING["mask"]
    alone = make_recipe(root, tmp_path / "one", steps=3, run=run, objective=objective, mask=mask)
    write_config(alone, path)

    start(1, train, path, [])
    start(gpus, train, path, [f"run.out={tmp_path / 'all'}", f"run.parallel={parallel}"])
    assert_same_losses(tmp_path / "all", tmp_path / "one", tolerance)


def test_compiled_blocks_train_like_others(root, tmp_path):
    model = {**MODEL, "dim": 512, "num_heads": 8, "ffn_dim": 512}  # narrower ones are not compiled
    for name, compiled in (("eager", False), ("compiled", True)):
        run = {"batch_size": 4, "log_every": 1, "compile": compiled}
        compiled_recipe = make_recipe(root, tmp_path / name, steps=2, model=model, run=run, **DENOISING)
        trainer.train(compiled_recipe)
    assert_same_losses(tmp_path / "compiled", tmp_path / "eager", 1e-3)
