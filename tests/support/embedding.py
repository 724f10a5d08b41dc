"""Texts of many lengths, the rate of made-up sounds, and how near to each other vectors must be."""

import torch
from torch.testing import assert_close

RATE = 16000
TEXTS = ["a dog", "rain", "a very long sentence about a dog in the rain at night", "", "sea waves", "the cat", "x"]


def assert_same(actual, expected):
    assert_close(torch.as_tensor(actual), torch.as_tensor(expected), atol=1e-5, rtol=0)
