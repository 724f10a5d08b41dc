"""Loading a model: its modalities, its dtype, its device."""

import pytest
import torch
from support.embedding import TEXTS, assert_same
from torch.testing import assert_close

import onepeace
from onepeace.errors import UserError


def test_load_keeps_only_the_modalities_asked_for(random_folder, model, sounds):
    audio = onepeace.load(random_folder, device="cpu", modalities=["audio"])
    assert audio.modalities == ("audio",)
    with pytest.raises(UserError, match="modalities"):
        onepeace.load(random_folder, device="cpu", modalities=[])
    assert sum(p.numel() for p in audio.module.parameters()) < sum(p.numel() for p in model.module.parameters())
    assert_same(audio.encode_audio(sounds), model.encode_audio(sounds))
    with pytest.raises(UserError, match="no text; it has audio"):
        audio.encode_text(["a"])
    with pytest.raises(UserError, match=r"picture\.jpg: looks like image; this model reads audio only"):
        audio.encode(["picture.jpg"])


@pytest.mark.parametrize("name", ["bfloat16", "bf16", torch.bfloat16])
def test_bfloat16_is_near_float32(random_folder, model, pictures, sounds, name):
    half = onepeace.load(random_folder, device="cpu", dtype=name)
    assert half.dtype == torch.bfloat16
    items = [*pictures, *sounds, *TEXTS]
    vectors = half.encode(items)
    assert vectors.dtype == torch.float32
    assert_close(vectors.norm(dim=1), torch.ones(len(items)), atol=1e-6, rtol=0)
    assert (vectors * model.encode(items)).sum(dim=1).min() > 0.98


def test_ids_stay_long_in_every_dtype(random_folder, monkeypatch):
    half = onepeace.load(random_folder, device="cpu", dtype="bfloat16")
    seen = []
    forward = half.module.forward
    monkeypatch.setattr(half.module, "forward", lambda inputs: seen.append(inputs["text"]["ids"]) or forward(inputs))
    half.encode_text(["a dog"])
    assert seen[0].dtype == torch.int64


def test_unknown_dtype_is_an_error(random_folder):
    for name in ("float61", "half precision", torch.int8, 16):
        with pytest.raises(UserError, match="known: auto, float32, bfloat16, float16"):
            onepeace.load(random_folder, device="cpu", dtype=name)
    with pytest.raises(UserError, match="not computed on a CPU; use bfloat16 or float32"):
        onepeace.load(random_folder, device="cpu", dtype="float16")


def test_unknown_device_is_an_error(random_folder):
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(UserError, match=r"available: .*cpu"):
            onepeace.load(random_folder, device=name)


def test_auto_dtype_follows_device_and_size(monkeypatch):
    from onepeace import device

    monkeypatch.setattr(device, "bfloat16_is_fast", lambda _: True)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert device.choose_dtype("auto", cpu, 10_000_000) == torch.float32
    assert device.choose_dtype("auto", cpu, 4_000_000_000) == torch.bfloat16
    assert device.choose_dtype("auto", cuda, 10_000_000) == torch.bfloat16
    monkeypatch.setattr(device, "bfloat16_is_fast", lambda _: False)
    assert device.choose_dtype("auto", cpu, 4_000_000_000) == torch.float32
    assert device.choose_dtype("fp16", cuda, 1) == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cuda_agrees_with_the_cpu(random_folder, model, pictures, sounds, dtype):
    items = [*pictures, *sounds, *TEXTS]
    vectors = onepeace.load(random_folder, device="cuda", dtype=dtype).encode(items)
    assert vectors.device.type == "cpu"
    assert (vectors * model.encode(items)).sum(dim=1).min() > (0.9999 if dtype == "float32" else 0.98)
