"""Prototypes of class names, and the sentences they are made of."""

import pytest
import torch
from support.embedding import assert_same

from onepeace.embed.classify import prototypes, with_article


def vectors_of_lengths(texts):
    angles = torch.tensor([len(text) / 10 for text in texts])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_prototype_is_the_normalised_mean_over_templates():
    sentences = vectors_of_lengths(["ox", "one ox", "goat", "one goat"]).view(2, 2, 2)

    vectors = prototypes(vectors_of_lengths, ["ox", "goat"], ["{}", "one {}"])

    assert_same(vectors, torch.nn.functional.normalize(sentences.mean(dim=1), dim=1))


@pytest.mark.parametrize(
    "phrase",
    ["an acorn", "a Persian cat", "a bus", "an Albatross", "a brass", "an iris", "sunglasses"],
)
def test_names_get_an_article_unless_plural(phrase):
    name = phrase.removeprefix("a ").removeprefix("an ")
    assert with_article(name) == phrase
