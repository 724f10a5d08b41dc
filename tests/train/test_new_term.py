"""A loss term is one class and one entry of TERMS, both of them in this file; it reads targets and learns a layer."""

from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import read_newest
from support.small_shards import COLOURS
from support.training import assert_falls, logged, source
from torch import nn

from onepeace.errors import UserError
from onepeace.losses import classification
from onepeace.train import trainer
from onepeace.train.term import Term, TermOptions
from onepeace.train.terms import TERMS


@dataclass(frozen=True, kw_only=True)
class LabelsOptions(TermOptions):
    classes: tuple[str, ...]


class Labels(Term[LabelsOptions]):
    """Cross entropy of a linear layer on CLS features."""

    Options = LabelsOptions

    def __init__(self, options, model, prepared=None):
        super().__init__(options, model)
        self.head = nn.Linear(model.config.dim, len(options.classes))

    @classmethod
    def check(cls, options, context):
        if len(options.classes) < 2:
            raise UserError(f"{options.where} has {len(options.classes)} classes; it needs two or more")

    def outputs(self, passes):
        return self.head(passes.unimodal(self.options.one_modality()).cls)

    def loss(self, outputs, batch, model):
        index = self.options.classes.index
        ids = torch.tensor([index(label) for label in batch.targets["label"]])
        return {self.options.name: classification(outputs, ids)}


@pytest.fixture
def train_labels(small_recipe, monkeypatch):
    monkeypatch.setitem(TERMS, "labels", Labels)

    def train(steps, classes, start=None):
        objective = {
            "contrastive": {"multi_positive": True},
            "labels/image": {"weight": 0.5, "classes": classes},
        }
        data = {"train": [source(targets=["label"])]}
        model = {} if start is None else {"model": {"from": str(start)}}
        name = "" if start is None else "next"
        return trainer.train(small_recipe(name, steps=steps, data=data, objective=objective, **model))

    return train


def test_new_term_learns_and_its_layer_is_saved(train_labels, tmp_path):
    folder = train_labels(steps=20, classes=list(COLOURS))

    assert_falls(tmp_path, "labels/image", factor=0.9)
    line = logged(tmp_path)[-1]
    expected = line["contrastive/text+image"] + 0.5 * line["labels/image"]
    assert line["loss"] == pytest.approx(expected, rel=1e-4)
    assert read_newest(tmp_path).model["terms.labels/image.head.weight"].shape == (len(COLOURS), 32)
    model = load_file(folder / "model.safetensors")
    assert not [name for name in model if "labels" in name]  # the model is the encoder alone


def test_layer_of_new_term_goes_with_the_model(train_labels):
    """At a learning rate of 0 for its first step, the next run has it as it was."""
    first = train_labels(steps=3, classes=list(COLOURS))
    saved = load_file(first / "terms.safetensors")["labels/image.head.weight"]

    second = train_labels(steps=1, classes=list(COLOURS), start=first)

    again = load_file(second / "terms.safetensors")["labels/image.head.weight"]
    torch.testing.assert_close(again, saved, atol=1e-5, rtol=0)
    assert saved.abs().max() > 0.01


def test_new_term_checks_its_options(train_labels):
    with pytest.raises(UserError, match=r"objective\.labels/image has 1 classes"):
        train_labels(steps=1, classes=["red"])
