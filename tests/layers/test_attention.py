"""Every kernel gives the same numbers, and which one is taken depends on device, dtype and length alone."""

import math

import pytest
import torch
from support.golden_cases import assert_near

from onepeace.layers import attention as module
from onepeace.layers.attention import SelfAttention, attention, hide_keys, use_math_attention

B, H, L, D = 3, 2, 9, 5
SCALE = 0.7
BIASES = {
    "none": None,
    "one table for the batch": (1, H, L, L),
    "one per item": (B, H, L, L),
    "padding only": (B, 1, 1, L),
}


def by_definition(q, k, v, bias):
    """Attention in float64."""
    logits = SCALE * q.double() @ k.double().mT
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1) @ v.double()


def inputs_of_attention(shape):
    """Queries, keys, values and a bias of this shape, which hides some keys if it has rows for each item."""
    q = torch.randn(B, H, L, D)
    k = torch.randn(B, H, L, D)
    v = torch.randn(B, H, L, D)
    if shape is None:
        return q, k, v, None
    bias = torch.randn(shape)
    if shape[0] == B:
        bias[0, :, :, 7:] = -math.inf
        bias[2, :, :, 3:] = -math.inf
    return q, k, v, bias


def inputs_with_hidden_keys():
    """The same attention in two forms: keys hidden by a bias for each item, and by further components beside one for
    the batch."""
    q, k, v, _ = inputs_of_attention(None)
    bias = torch.randn(1, H, L, L)
    hidden = torch.arange(L) >= torch.tensor([[7], [L], [3]])
    of_items = bias + torch.zeros(B, 1, 1, L).masked_fill(hidden[:, None, None], -math.inf)
    return (q, k, v, of_items), (*hide_keys(q, k, hidden), v, bias)


def converted(tensors, dtype):
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


@pytest.fixture(params=[True, False], ids=["plain", "fused"])
def kernel(request, monkeypatch):
    monkeypatch.setattr(module, "use_math_attention", lambda *_: request.param)


DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.05)]
)


@DTYPES
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", BIASES)
def test_every_kernel_computes_attention(name, dtype, tolerance):
    inputs = inputs_of_attention(BIASES[name])
    attended = attention(*converted(inputs, dtype), SCALE)
    assert attended.dtype == dtype
    assert_near(attended.double(), by_definition(*inputs), tolerance)


@DTYPES
@pytest.mark.usefixtures("kernel")
def test_keys_hidden_beside_a_bias(dtype, tolerance):
    folded, beside = inputs_with_hidden_keys()
    attended = attention(*converted(beside, dtype), SCALE)
    assert_near(attended.double(), by_definition(*folded), tolerance)


@pytest.mark.parametrize(
    ("has_amx", "dtype", "length", "is_math"),
    [
        (False, torch.float32, 64, True),
        (False, torch.float32, 257, False),
        (False, torch.bfloat16, 200, True),
        (False, torch.bfloat16, 257, False),
        (True, torch.bfloat16, 15, True),
        (True, torch.bfloat16, 26, False),
    ],
)
def test_kernel_of_a_cpu_is_chosen_by_dtype_and_length(monkeypatch, has_amx, dtype, length, is_math):
    monkeypatch.setattr(module, "_has_amx", lambda: has_amx)
    assert use_math_attention("cpu", dtype, length) == is_math


def test_kernel_of_a_cpu_for_a_trained_bias(monkeypatch):
    monkeypatch.setattr(module, "_has_amx", lambda: False)
    assert use_math_attention("cpu", torch.bfloat16, 257, trained_bias=True)


def test_kernel_of_a_gpu_is_never_plain():
    assert not use_math_attention("cuda", torch.bfloat16, 8)


@pytest.mark.parametrize("length", [20, 220])  # both forms in bfloat16
def test_autocast_takes_float32_tables(length):
    layer = SelfAttention(8, 2)
    x = torch.randn(2, length, 8)
    bias = torch.randn(1, 2, length, length)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x, bias)
    assert_near(rounded.float(), layer(x, bias), 0.05)
