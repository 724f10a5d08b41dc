"""The check of a step in bfloat16 on a GPU that does not exist finds what would fail or wait on one.

The steps of all recipes are checked in test_recipes.py and in tests/recipes.
"""

import pytest
import torch
from support.fake_gpu import StepChecked, check_first_step
from support.training import DENOISING, MODEL, make_recipe
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from onepeace.model.masked_decoder import MaskedDecoder
from onepeace.train import parallel, trainer
from onepeace.train.passes import Passes

MIXED_DEVICES = RuntimeError
"""torch's FakeTensorDeviceMismatchError, or an error of an operation, is one."""


@pytest.fixture
def first_step(root, tmp_path, monkeypatch):
    """Takes the first step of a run with every kind of pass, on the fake GPU."""
    check_first_step(monkeypatch, then_stop=True)
    run = {"batch_size": 4, "grad_cache_chunks": 2, "ema": 0.5, "max_padding": 0.0}

    def take():
        trainer.train(make_recipe(root, tmp_path / "run", steps=1, model={**MODEL, "depth": 1}, run=run, **DENOISING))

    return take


def test_index_on_the_cpu_is_found(first_step, monkeypatch):
    monkeypatch.setattr(Passes, "_index", lambda passes, rows: torch.from_numpy(rows))
    with pytest.raises(RuntimeError, match="an index on the CPU"):
        first_step()


def test_tensor_on_the_cpu_is_found(first_step, monkeypatch):
    def buckets_on_the_cpu(length, num_buckets, device):
        return torch.zeros(1, length, length, dtype=torch.int64)

    monkeypatch.setattr("onepeace.model.adapters.text.sequence_buckets", buckets_on_the_cpu)
    with pytest.raises(MIXED_DEVICES):
        first_step()


def test_mixed_types_are_found(first_step, monkeypatch):
    def fill(decoder, key, tokens, keep, grid):
        x = decoder.into[key](tokens)  # in bfloat16, by autocast
        index = torch.zeros_like(x, dtype=torch.int64)
        return torch.zeros_like(x, dtype=torch.float32).scatter(1, index, x)

    monkeypatch.setattr(MaskedDecoder, "_fill", fill)
    with pytest.raises(RuntimeError, match="dtype"):
        first_step()


WAITS = (
    (lambda norm: norm.item(), DataDependentOutputException),
    (lambda norm: bool(norm > 1), DataDependentOutputException),
    (lambda norm: norm[None].nonzero(), DynamicOutputShapeException),
    (lambda norm: norm.cpu(), RuntimeError),
    (lambda norm: norm + torch.zeros(1).to(norm.device), RuntimeError),
)


def test_step_mixes_no_devices_and_each_wait_is_found(first_step, monkeypatch):
    """A step without faults passes; whatever would wait in it fails."""
    clip = parallel.clip_gradients

    def clip_and_wait(objective, limit):
        norm = clip(objective, limit)
        for wait, error in WAITS:
            with pytest.raises(error):
                wait(norm)
        return norm

    monkeypatch.setattr(parallel, "clip_gradients", clip_and_wait)
    with pytest.raises(StepChecked):
        first_step()
