"""Prototypes of class names, and the sentences they are made of."""

import numpy as np
import pytest
import torch

from onepeace.embed.zero_shot import prototypes, with_article


def test_prototype_is_the_normalised_mean_over_templates():
    def encode_text(items):
        angle = torch.tensor([len(item) / 10.0 for item in items])
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    got = prototypes(encode_text, ["ox", "goat"], ["{}", "one {}"])
    for row, lengths in zip(got, ((2, 6), (4, 8)), strict=True):
        mean = np.mean([[np.cos(n / 10), np.sin(n / 10)] for n in lengths], axis=0)
        assert row.numpy() == pytest.approx(mean / np.linalg.norm(mean))


def test_names_get_an_article_unless_plural():
    given = ["acorn", "Persian cat", "sunglasses", "bus", "Albatross", "brass", "iris"]
    want = ["an acorn", "a Persian cat", "sunglasses", "a bus", "an Albatross", "a brass", "an iris"]
    assert [with_article(name) for name in given] == want
