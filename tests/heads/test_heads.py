"""Heads by name, and features of chosen blocks."""

import pytest
import torch
from support.golden_cases import assert_near
from support.small_models import ALL, batch_of, item, small_model

from onepeace.config import ModelConfig, build, to_plain
from onepeace.errors import UserError
from onepeace.heads import HEADS, Head

PETS = {"kind": "classifier", "on": "image", "num_classes": 3, "hidden_ratio": 0}


def test_two_heads_stand_beside_the_projections():
    heads = {"pets": PETS, "mood": {**PETS, "on": "text"}}
    model = small_model("text", "image", decoder=None, heads=heads)
    assert set(model.heads) == {"text", "image", "pets", "mood"}
    assert build(ModelConfig, to_plain(model.config), "config") == model.config

    batch = batch_of(model, range(3))
    pets = model.predict(batch, head="pets")
    assert pets.shape == (3, 3)
    assert not torch.equal(pets, model.predict(batch, head="mood"))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("image", {}, "model.heads.image"),
        ("pets", {"on": "video"}, "modality of image"),
        ("pets", {"kind": "oracle"}, "'oracle'; known: caption, classifier"),
        ("pets", {"pools": "cls"}, r"model.heads.pets: pools .*pool\?"),
    ],
)
def test_wrong_head_is_named(name, changes, words):
    with pytest.raises(UserError, match=words):
        small_model("image", heads={name: {**PETS, **changes}})


class MeanHead(Head):
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
    monkeypatch.setitem(HEADS, "mean", MeanHead)
    head = {"kind": "mean", "on": "text", "scale": 2.0}
    model = small_model("text", heads={"tokens": head})
    batch = batch_of(model, [1])
    expected = 2 * model.features(batch)["text"].mean(1)
    assert torch.equal(model.predict(batch, head="tokens"), expected)


@pytest.fixture(scope="module")
def deep_model():
    return small_model(*ALL, decoder=None, depth=3)


@pytest.fixture(scope="module")
def batch():
    """A picture of 2 x 4 patches, a text and a sound."""
    torch.manual_seed(0)
    return {
        "text": item("text", 0),
        "image": {"pixels": torch.randn(1, 3, 32, 64)},
        "audio": item("audio", 0),
    }


@pytest.fixture(scope="module")
def features(deep_model, batch):
    """Features, with those of the last block and of the first."""
    with torch.no_grad():
        return deep_model.encode(deep_model.stems(batch), out_indices=(-1, 0))


@torch.no_grad()
@pytest.mark.parametrize("key", ALL)
def test_features_of_the_last_block_lack_the_norm(deep_model, features, key):
    last, first = features[key].intermediates
    assert_near(deep_model.norms[key](last.tokens), features[key].tokens, 1e-6)
    assert not torch.allclose(first.tokens, last.tokens)


@torch.no_grad()
def test_features_of_the_first_block_are_those_of_a_model_of_one_block(deep_model, batch, features):
    shallow = small_model(*ALL, decoder=None, depth=1, final_norm=False)
    assert shallow.load_state_dict(deep_model.state_dict(), strict=False).missing_keys == []
    expected = shallow.features(batch)
    for key in ALL:
        _, first = features[key].intermediates
        assert torch.equal(first.tokens, expected[key])


def test_feature_map_has_the_grid_of_the_picture(features):
    patches = features["image"].intermediates[1]
    assert patches.grid == features["image"].grid == (2, 4)
    feature_map = patches.feature_map()
    assert feature_map.shape == (1, 32, 2, 4)
    token = 1 + 4 + 2  # after CLS and the first row
    assert torch.equal(feature_map[0, :, 1, 2], patches.tokens[0, token])
    sound = features["audio"]
    assert sound.feature_map().shape == (1, 32, *sound.grid)
