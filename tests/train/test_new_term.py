"""A loss term is one class and one entry of TERMS, both of them in this file; it reads targets and learns a layer."""

from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from support.checkpoints import read_newest
from support.small_shards import COLOURS
from support.training import recipe, source
from torch import nn

from onepeace.errors import UserError
from onepeace.losses import classification
from onepeace.train import loop
from onepeace.train.log import read_log
from onepeace.train.term import Term, TermOptions
from onepeace.train.terms.registry import TERMS


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
        ids = torch.tensor([self.options.classes.index(label) for label in batch.targets["label"]])
        return {self.options.name: classification(outputs, ids)}


@pytest.fixture(autouse=True)
def _labels(monkeypatch):
    monkeypatch.setitem(TERMS, "labels", Labels)


def labelled(root, out, **fields):
    fields = {"data": {"train": [source(targets=["label"])]}, **fields}
    objective = {"contrastive": {"multi_positive": True}, "labels/image": {"weight": 0.5, "classes": list(COLOURS)}}
    return recipe(root, out, **{"objective": objective, **fields})


def test_it_learns_beside_the_others_and_its_layer_is_saved(root, tmp_path):
    folder = loop.train(labelled(root, tmp_path, steps=40))
    first, *_, last = read_log(tmp_path / "log.jsonl")
    assert last["labels/image"] < 0.7 * first["labels/image"]
    assert last["loss"] == pytest.approx(last["contrastive/text+image"] + 0.5 * last["labels/image"], rel=1e-4)
    saved = read_newest(tmp_path).model
    assert saved["terms.labels/image.head.weight"].shape == (len(COLOURS), 32)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "labels" in name]  # the model is the encoder alone
