"""The term names: a classifier's scores reach pictures and words by the names of its classes."""

from functools import partial

import pytest
import torch
from support.recipe_files import recipe_file
from support.small_shards import COLOURS, write_shards
from support.training import assert_falls, make_recipe
from torch.nn import functional
from torch.testing import assert_close

from onepeace.errors import UserError
from onepeace.train import teachers, trainer

class_names = recipe_file("class_names", "pretrain")

CLASSES = {
    **COLOURS,
    "violet": (140, 40, 170),
    "brown": (120, 70, 20),
}
"""Two of them by names that no caption has."""


def scores(pictures):
    """The nearer a picture's mean colour is to that of a class the higher."""
    means = torch.tensor([picture.convert("RGB").resize((1, 1)).getpixel((0, 0)) for picture in pictures])
    colours = torch.tensor(list(CLASSES.values()))
    differences = means[:, None] - colours
    return -differences.float().square().sum(-1) / 500


@pytest.fixture(autouse=True)
def _classifier(monkeypatch):
    def classifier(name, modality, output):
        assert (name, modality, output) == ("colours", "image", "scores")
        return scores

    monkeypatch.setitem(teachers.TEACHERS, "test", classifier)
    monkeypatch.setattr("open_clip.IMAGENET_CLASSNAMES", list(CLASSES))


TEACHER = {"library": "test", "name": "colours"}


@pytest.fixture
def small_recipe(tmp_path):
    root = write_shards(tmp_path / "shards")
    return partial(make_recipe, root, tmp_path)


def test_names_are_learned(small_recipe, tmp_path):
    term = {"teacher": TEACHER, "names": 4, "templates": ["{}", "a {} square"]}
    objective = {"contrastive": {"multi_positive": True}, "names/image": term}

    trainer.train(small_recipe(steps=20, objective=objective))

    assert_falls(tmp_path, "names/image", factor=0.8)


@pytest.fixture
def vectors():
    items = functional.normalize(torch.randn(5, 6), dim=-1)
    texts = functional.normalize(torch.randn(3, 6), dim=-1)
    return items, texts


def test_soft_targets_are_a_cross_entropy(vectors):
    items, texts = vectors
    targets = torch.rand(5, 3).softmax(-1)

    expected = functional.cross_entropy(9 * items @ texts.T, targets)

    assert_close(class_names.soft_targets(items, texts, targets, 9.0), expected)
    assert_close(class_names.soft_targets(items, texts, targets / 2, 9.0), expected / 2)
    assert_close(class_names.soft_targets(items, texts, targets, 9.0, count=10), expected / 2)


def test_soft_targets_of_no_items(vectors):
    items, texts = vectors
    assert class_names.soft_targets(items[:0], texts, torch.rand(0, 3), 9.0) == 0


@pytest.mark.parametrize("term", ["names/text", "names"])
def test_names_are_for_modality_with_classifier(small_recipe, term):
    objective = {"contrastive": {}, term: {"teacher": TEACHER}}
    with pytest.raises(UserError, match=rf"objective\.{term}\.on"):
        trainer.train(small_recipe(objective=objective))
