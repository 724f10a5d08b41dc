"""The term names: a classifier's scores reach pictures and words by the names of its classes."""

import pytest
import torch
from support.small_shards import COLOURS
from support.training import recipe
from torch.nn import functional

from onepeace import losses
from onepeace.errors import UserError
from onepeace.train import loop, teachers
from onepeace.train.log import read_log

NAMES = [*COLOURS, "violet", "brown"]


@pytest.fixture(autouse=True)
def _classifier(monkeypatch):
    """It knows the squares' colours, and calls two more classes by names that no caption has."""

    def scores(pictures):
        means = [picture.convert("RGB").resize((1, 1)).getpixel((0, 0)) for picture in pictures]
        colours = [*COLOURS.values(), (140, 40, 170), (120, 70, 20)]
        differences = torch.tensor(means)[:, None] - torch.tensor(colours)
        return -differences.float().square().sum(-1) / 500

    def classifier(name, modality, output):
        assert (name, modality, output) == ("colours", "image", "scores")
        return scores

    monkeypatch.setitem(teachers.TEACHERS, "test", classifier)
    monkeypatch.setattr("open_clip.IMAGENET_CLASSNAMES", NAMES)


def names_recipe(root, out, term="names/image", steps=60, **options):
    teacher = {"library": "test", "name": "colours"}
    objective = {"contrastive": {"multi_positive": True}, term: {"teacher": teacher, **options}}
    return recipe(root, out, steps=steps, objective=objective)


def test_it_learns(root, tmp_path):
    loop.train(names_recipe(root, tmp_path, steps=40, names=4, templates=["{}", "a {} square"]))
    first, *_, last = read_log(tmp_path / "log.jsonl")
    assert last["names/image"] < 0.6 * first["names/image"]


def test_soft_targets_are_a_cross_entropy():
    torch.manual_seed(0)
    items = functional.normalize(torch.randn(5, 6), dim=-1)
    texts = functional.normalize(torch.randn(3, 6), dim=-1)
    targets = torch.rand(5, 3).softmax(-1)
    expected = functional.cross_entropy(9 * items @ texts.T, targets)
    torch.testing.assert_close(losses.soft_targets(items, texts, targets, 9.0), expected)
    torch.testing.assert_close(losses.soft_targets(items, texts, targets / 2, 9.0), expected / 2)
    torch.testing.assert_close(losses.soft_targets(items, texts, targets, 9.0, count=10), expected / 2)
    assert losses.soft_targets(items[:0], texts, targets[:0], 9.0) == 0
    with pytest.raises(ValueError, match=r"targets \(3, 5\) should be \(5, 3\)"):
        losses.soft_targets(items, texts, targets.T, 9.0)


@pytest.mark.parametrize(
    ("term", "options", "message"),
    [
        ("names/text", {}, r"objective\.names/text\.on"),
        ("names", {}, r"objective\.names\.on"),
    ],
)
def test_mistakes_are_one_line(root, tmp_path, term, options, message):
    with pytest.raises(UserError, match=message):
        loop.train(names_recipe(root, tmp_path, term, steps=1, **options))
