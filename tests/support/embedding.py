"""Texts of many lengths, and how near to each other vectors must be."""

import torch
from torch.testing import assert_close

TEXTS = [
    "a dog",
    "rain",
    "a very long sentence about a dog in the rain at night",
    "",
    "sea waves",
    "the cat",
    "x",
]


def varied_texts(count):
    """Texts of many lengths, each different."""
    texts = []
    for number in range(count):
        words = ["word"] * (number * 7 % 13)
        texts.append(" ".join([*words, str(number)]))
    return texts


def assert_same(actual, expected, atol=1e-5):
    assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=atol, rtol=0)


def assert_unit_rows(vectors, count):
    """float32 vectors on the CPU."""
    assert vectors.shape[0] == count
    assert vectors.dtype == torch.float32
    assert vectors.device.type == "cpu"
    assert_close(vectors.norm(dim=1), torch.ones(count), atol=1e-6, rtol=0)
