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
    """Attention of one query after the other, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    bias = torch.zeros(B, H, L, L) if bias is None else bias.expand(B, H, L, L)
    out = torch.zeros(B, H, L, D, dtype=torch.float64)
    for item in range(B):
        for head in range(H):
            for query in range(L):
                weights = []
                for key in range(L):
                    logit = SCALE * float(q[item, head, query] @ k[item, head, key])
                    weights.append(math.exp(logit + float(bias[item, head, query, key])))
                for key in range(L):
                    out[item, head, query] += weights[key] / sum(weights) * v[item, head, key]
    return out


def inputs_of_attention(shape):
    """Queries, keys, values and a bias of this shape, which hides some keys if it has rows for each item."""
    q = torch.randn(B, H, L, D)
    k = torch.randn(B, H, L, D)
    v = torch.randn(B, H, L, D)
    bias = None
    if shape is not None:
        bias = torch.randn(shape)
        if shape[0] == B:
            bias[0, :, :, 7:] = -math.inf
            bias[2, :, :, 3:] = -math.inf
    return q, k, v, bias


def converted(tensors, dtype):
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("plain", [True, False])
def test_every_path_equal(monkeypatch, plain, name):
    monkeypatch.setattr(module, "use_math_attention", lambda *_: plain)
    inputs = inputs_of_attention(BIASES[name])
    expected = by_loops(*inputs)
    assert torch.allclose(attention(*inputs, SCALE).double(), expected, atol=2e-6, rtol=0)
    in_double = attention(*converted(inputs, torch.float64), SCALE)
    assert torch.allclose(in_double, expected, atol=1e-12, rtol=0)
    in_half = attention(*converted(inputs, torch.bfloat16), SCALE)
    assert in_half.dtype == torch.bfloat16
    assert torch.allclose(in_half.double(), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", BIASES)
def test_gradients_of_every_path_equal(monkeypatch, name):
    inputs = converted(inputs_of_attention(BIASES[name]), torch.float64)
    upstream = torch.randn(B, H, L, D, dtype=torch.float64)

    def gradients(plain):
        monkeypatch.setattr(module, "use_math_attention", lambda *_: plain)
        leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in inputs]
        (attention(*leaves, SCALE) * upstream).sum().backward()
        return [leaf.grad for leaf in leaves if leaf is not None]

    for plain, fused in zip(gradients(True), gradients(False), strict=True):
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
    q, k, v, bias = inputs_of_attention((B, H, L, L))
    v[0, :, 7:] = 1e30
    assert attention(q, k, v, bias, SCALE)[0].abs().max() < 10


def test_autocast_takes_float32_tables():
    layer = SelfAttention(8, 2)
    for length in (20, 220):  # both forms in bfloat16
        x = torch.randn(2, length, 8)
        bias = torch.randn(1, 2, length, length)
        with torch.autocast("cpu", torch.bfloat16):
            rough = layer(x, bias)
        assert torch.allclose(rough.float(), layer(x, bias), atol=0.05, rtol=0)
