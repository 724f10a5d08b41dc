"""Every kernel gives the same numbers, and which one is taken depends on device, dtype and length alone."""

import math

import pytest
import torch

from onepeace.layers import attention as module
from onepeace.layers.attention import SelfAttention, attention, use_math_attention

B, H, L, D = 3, 2, 9, 5
SCALE = 0.7
BIASES = {
    "none": None,
    "one table for the batch": (1, H, L, L),
    "one per item": (B, H, L, L),
    "padding only": (B, 1, 1, L),
}


def by_loops(q, k, v, bias):
    out = torch.zeros(B, H, L, D, dtype=torch.float64)
    for b in range(B):
        for h in range(H):
            for i in range(L):
                logits = [SCALE * sum(q[b, h, i, d].item() * k[b, h, j, d].item() for d in range(D)) for j in range(L)]
                if bias is not None:
                    one = bias.expand(B, H, L, L)[b, h, i].tolist()
                    logits = [x + y for x, y in zip(logits, one, strict=True)]
                weights = [math.exp(x) for x in logits]
                for j in range(L):
                    out[b, h, i] += weights[j] / sum(weights) * v[b, h, j].double()
    return out


def case(shape, dtype=torch.float32):
    q, k, v = (torch.randn(B, H, L, D) for _ in range(3))
    bias = None if shape is None else torch.randn(shape)
    if shape is not None and shape[0] == B:
        bias[0, :, :, 7:] = -math.inf
        bias[2, :, :, 3:] = -math.inf
    return [None if x is None else x.to(dtype) for x in (q, k, v, bias)]


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("plain", [True, False])
def test_every_path_equal(monkeypatch, plain, name):
    monkeypatch.setattr(module, "use_math_attention", lambda *_: plain)
    q, k, v, bias = case(BIASES[name])
    expected = by_loops(q, k, v, bias)
    assert torch.allclose(attention(q, k, v, bias, SCALE).double(), expected, atol=2e-6, rtol=0)
    in_double = attention(*(None if x is None else x.double() for x in (q, k, v, bias)), SCALE)
    assert torch.allclose(in_double, expected, atol=1e-12, rtol=0)
    in_half = attention(*(None if x is None else x.bfloat16() for x in (q, k, v, bias)), SCALE)
    assert in_half.dtype == torch.bfloat16
    assert torch.allclose(in_half.double(), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", BIASES)
def test_gradients_of_every_path_equal(monkeypatch, name):
    grads = []
    inputs = case(BIASES[name], torch.float64)
    upstream = torch.randn(B, H, L, D, dtype=torch.float64)
    for plain in (True, False):
        monkeypatch.setattr(module, "use_math_attention", lambda *_, plain=plain: plain)
        leaves = [None if x is None else x.clone().requires_grad_() for x in inputs]
        (attention(*leaves, SCALE) * upstream).sum().backward()
        grads.append([x.grad for x in leaves if x is not None])
    for plain, fused in zip(*grads, strict=True):
        assert torch.allclose(plain, fused, atol=1e-12, rtol=0)
        assert bool(torch.isfinite(plain).all())


def test_kernel_is_chosen_by_device_dtype_and_length(monkeypatch):
    monkeypatch.setattr(module, "_has_amx", lambda: False)
    assert use_math_attention("cpu", torch.float32, 64)
    assert not use_math_attention("cpu", torch.float32, 257)
    assert use_math_attention("cpu", torch.bfloat16, 200)
    assert not use_math_attention("cpu", torch.bfloat16, 257)
    assert use_math_attention("cpu", torch.bfloat16, 257, True)
    monkeypatch.setattr(module, "_has_amx", lambda: True)
    assert use_math_attention("cpu", torch.bfloat16, 15)
    assert not use_math_attention("cpu", torch.bfloat16, 26)
    assert not any(use_math_attention("cuda", dtype, 8) for dtype in (torch.float32, torch.bfloat16, torch.float16))


def test_padding_gets_no_weight_at_all():
    """Not a large negative number: values behind -inf may be anything but NaN."""
    q, k, v, bias = case((B, H, L, L))
    v[0, :, 7:] = 1e30
    assert attention(q, k, v, bias, SCALE)[0].abs().max() < 10


def test_autocast_takes_float32_tables():
    layer = SelfAttention(8, 2)
    for length in (20, 220):  # both forms in bfloat16
        x, bias = torch.randn(2, length, 8), torch.randn(1, 2, length, length)
        with torch.autocast("cpu", torch.bfloat16):
            rough = layer(x, bias)
        assert torch.allclose(rough.float(), layer(x, bias), atol=0.05, rtol=0)
