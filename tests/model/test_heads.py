"""Heads by name, and features of chosen blocks."""

import pytest
import torch
from support.small_models import ALL, batch_of, item, small_model

from onepeace.config import ModelConfig, build, to_plain
from onepeace.errors import UserError
from onepeace.heads import HEADS, Head

PETS = {"kind": "classifier", "on": "image", "num_classes": 3, "hidden_ratio": 0}


def test_two_heads_stand_beside_the_projections():
    model = small_model("text", "image", decoder=None, heads={"pets": PETS, "mood": {**PETS, "on": "text"}})
    names = {name.split(".")[1] for name in model.state_dict() if name.startswith("heads.")}
    assert names == {"text", "image", "pets", "mood"}
    batch = batch_of(model, range(3))
    assert model.predict(batch, head="pets").shape == (3, 3)
    assert not torch.equal(model.predict(batch, head="pets"), model.predict(batch, head="mood"))
    assert build(ModelConfig, to_plain(model.config), "config") == model.config


def test_heads_that_do_not_exist_are_named():
    model = small_model("image", decoder=None, heads={"pets": PETS})
    with pytest.raises(ValueError, match=r"no head '\w+'; its heads: pets"):
        model.predict(batch_of(model, [0]), head="dogs")


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("image", PETS, "model.heads.image has the name of a modality"),
        ("pets", {**PETS, "on": "video"}, "it needs kind .* and on, a modality of image"),
        ("pets", {**PETS, "kind": "oracle"}, "no kind 'oracle'; known: caption, classifier"),
        ("pets", {**PETS, "pools": "cls"}, "model.heads.pets: pools is not a field; did you mean pool?"),
        ("pets", {**PETS, "pool": "max"}, "pool 'max' is not known; known: attention, mean, cls"),
    ],
)
def test_wrong_head_is_one_line(name, head, message):
    with pytest.raises(UserError, match=message):
        small_model("image", heads={name: head})


class Count(Head):
    """A kind of head that only this file knows: the mean of all tokens, scaled."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    @classmethod
    def from_options(cls, dim, num_heads, options, where):
        return cls(options["scale"])

    def forward(self, *passes):
        return self.scale * passes[0].tokens.mean(1)


def test_new_kind_of_head_is_one_entry(monkeypatch):
    monkeypatch.setitem(HEADS, "count", Count)
    model = small_model("text", heads={"tokens": {"kind": "count", "on": "text", "scale": 2.0}})
    batch = batch_of(model, [1])
    assert torch.equal(model.predict(batch, head="tokens"), 2 * model.features(batch)["text"].mean(1))


@torch.no_grad()
def test_features_of_chosen_blocks_have_their_grid():
    model = small_model(*ALL, decoder=None, depth=3)
    batch = {key: item(key, 0) for key in ALL} | {"image": {"pixels": torch.randn(1, 3, 32, 64)}}
    features = model.encode(model.stems(batch), out_indices=(-1, 0))
    plain = model.encode(model.stems(batch))
    assert features["image"].grid == (2, 4)
    for key, found in features.items():
        assert torch.equal(found.tokens, plain[key].tokens)
        assert plain[key].intermediates == ()
        last, first = found.intermediates
        assert torch.allclose(model.norms[key](last.tokens), found.tokens, atol=1e-6)
        assert not torch.allclose(first.tokens, last.tokens)
        assert first.feature_map().shape == (1, 32, *found.grid)
    patches = features["image"].intermediates[1]
    assert torch.equal(patches.feature_map()[0, :, 1, 2], patches.tokens[0, 1 + 4 + 2])
    # The first block's output is that of a model with one block.
    short = small_model(*ALL, decoder=None, depth=1, final_norm=False)
    assert short.load_state_dict(model.state_dict(), strict=False).missing_keys == []
    assert torch.equal(short.features(batch)["text"], features["text"].intermediates[1].tokens)


@torch.no_grad()
def test_tokens_left_out_leave_no_grid():
    model = small_model("image")
    stems = model.stems({"image": item("image", 0)})
    features = model.encode(stems, {"image": torch.tensor([[0, 2, 5]])})["image"]
    with pytest.raises(ValueError, match="no grid"):
        features.feature_map()
