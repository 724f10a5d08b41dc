"""Loading a model: its modalities, its dtype, its device."""

from functools import partial

import pytest
import torch
from support.embedding import assert_same, assert_unit_rows

import onepeace
from onepeace import device
from onepeace.errors import UserError


@pytest.fixture(scope="module")
def audio_model(random_folder):
    return onepeace.load(random_folder, device="cpu", modalities=["audio"])


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.module.parameters())


def test_load_keeps_only_the_modalities_asked_for(audio_model, model, sounds):
    assert audio_model.modalities == ("audio",)
    assert num_parameters(audio_model) < num_parameters(model)
    assert_same(audio_model.encode_audio(sounds), model.encode_audio(sounds))


def test_items_of_a_modality_left_out_are_errors(audio_model):
    with pytest.raises(UserError, match="no text; it has audio"):
        audio_model.encode_text(["a"])
    with pytest.raises(UserError, match=r"picture\.jpg: .*image.*audio only"):
        audio_model.encode(["picture.jpg"])


def test_bfloat16_is_near_float32(random_folder, model, items):
    half = onepeace.load(random_folder, device="cpu", dtype="bfloat16")
    vectors = half.encode(items)

    assert half.dtype == torch.bfloat16
    assert_unit_rows(vectors, len(items))
    assert (vectors * model.encode(items)).sum(dim=1).min() > 0.98


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float61"}, "known: auto, float32"),
        ({"dtype": "float16"}, "use bfloat16"),
        ({"device": "cuda:99"}, "available: .*cpu"),
        ({"device": "gpu"}, "available: .*cpu"),
        ({"modalities": []}, "modalities"),
    ],
)
def test_wrong_options_of_load_are_errors(random_folder, options, words):
    with pytest.raises(UserError, match=words):
        onepeace.load(random_folder, **{"device": "cpu", **options})


@pytest.mark.parametrize(
    ("bfloat16_is_fast", "dtype", "where", "num_parameters", "expected"),
    [
        (True, "auto", "cpu", 10_000_000, torch.float32),
        (True, "auto", "cpu", 4_000_000_000, torch.bfloat16),
        (True, "auto", "cuda", 10_000_000, torch.bfloat16),
        (False, "auto", "cpu", 4_000_000_000, torch.float32),
        (False, "fp16", "cuda", 1, torch.float16),
        (False, torch.bfloat16, "cpu", 1, torch.bfloat16),
    ],
)
def test_auto_dtype_follows_device_and_size(monkeypatch, bfloat16_is_fast, dtype, where, num_parameters, expected):
    monkeypatch.setattr(device, "bfloat16_is_fast", lambda _: bfloat16_is_fast)
    assert device.choose_dtype(dtype, torch.device(where), num_parameters) == expected


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "least"),
    [
        ("float32", 1 - 1e-5),
        ("bfloat16", 0.98),
        ("float16", 0.98),
    ],
)
def test_cuda_agrees_with_the_cpu(random_folder, model, items, monkeypatch, dtype, least):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    vectors = onepeace.load(random_folder, device="cuda", dtype=dtype).encode(items)

    assert vectors.device.type == "cpu"
    assert (vectors * model.encode(items)).sum(dim=1).min() > least


def test_habits_of_torch(model):
    assert model.eval() is model
    assert not model.module.training
    for move in (partial(model.to, "cpu"), model.cuda, model.half):
        with pytest.raises(UserError, match="device="):
            move()
    for learn in (model.train, model.parameters):
        with pytest.raises(UserError, match=r"model\.encoder\.parameters"):
            learn()
