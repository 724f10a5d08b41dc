"""Features of a pretrained stem in place of raw input, and the MLP on them that is added to CLS before and after the
blocks."""

import pytest
import torch
from support.golden_cases import assert_near
from support.small_models import CONVS, small_model
from torch.nn import functional as F

IMAGE = {"stem": "timm", "name": "test_efficientnet", "patch_size": 32, "grid": 2, "bias_grid": 2}
AUDIO = {"stem": "aisfx", "width": 2, "num_buckets": 6, **CONVS}
MODALITIES = pytest.mark.parametrize("key", ["image", "audio"])


def stem_model(cls_hidden=20):
    """Pictures and sounds with stems of random weights."""
    pooling = {"mean_cls": True, "cls_hidden": cls_hidden, "cls_dropout": 0.5}
    adapters = {
        "image": {**IMAGE, **pooling},
        "audio": {**AUDIO, **pooling},
    }
    return small_model(adapters=adapters, projections=tuple(adapters), decoder=None)


@pytest.fixture
def model():
    return stem_model()


@pytest.fixture
def batches(model):
    """Features by modality; the second sound has one token."""
    channels = model.adapters["image"].stem.proj.in_features
    return {
        "image": {"features": torch.randn(2, 1, 5, channels)},
        "audio": {
            "features": torch.randn(2, 5, 16),
            "lengths": torch.tensor([5, 1]),
        },
    }


def raw_input(key):
    if key == "image":
        return {"pixels": torch.randn(2, 3, 64, 96)}
    lengths = torch.tensor([40000, 21000])
    return {"waveform": torch.randn(2, 40000), "lengths": lengths}


@MODALITIES
@pytest.mark.parametrize("cls_hidden", [0, 20])
@torch.inference_mode()
def test_features_give_the_vectors_of_raw_input(key, cls_hidden):
    model = stem_model(cls_hidden)
    adapter = model.adapters[key]
    raw = raw_input(key)
    batch = {"features": adapter.stem_features(raw)}
    if "lengths" in raw:
        batch["lengths"] = adapter.token_lengths(raw)
    second = adapter.take(batch, torch.tensor([1]))

    assert torch.equal(adapter.token_lengths(batch), adapter.token_lengths(raw))
    expected = model({key: raw})[key]
    assert_near(model({key: batch})[key], expected, 1e-6)
    assert_near(model({key: second})[key], expected[1:], 1e-6)


@torch.inference_mode()
def test_padding_does_not_count_in_the_terms(model, batches):
    adapter = model.adapters["audio"]
    batch = batches["audio"]
    alone = {"features": batch["features"][1:, :1]}
    assert_near(adapter.stem_tokens(batch).pooled[1:], adapter.stem_tokens(alone).pooled, 1e-5)


@MODALITIES
@pytest.mark.parametrize("keep", [None, torch.tensor([[0, 1, 3], [0, 1, -1]])], ids=["all", "some"])
@torch.inference_mode()
def test_terms_are_added_to_cls_before_and_after_the_blocks(model, batches, key, keep):
    """The second one normalised, so that it is as long as CLS."""
    adapter = model.adapters[key]
    stem = adapter.stem_tokens(batches[key])
    before = adapter(stem, keep).tokens[:, 0] - adapter(stem._replace(pooled=None), keep).tokens[:, 0]
    assert_near(before, stem.pooled[:, 0], 1e-4)

    first_only = stem.pooled.clone()
    first_only[:, 1] = 0.0
    features = model.encode({key: stem}, {key: keep})[key]
    without = model.encode({key: stem._replace(pooled=first_only)}, {key: keep})[key]
    second = F.layer_norm(stem.pooled[:, 1], features.cls.shape[1:])
    assert_near(features.cls - without.cls, second, 1e-4)
    assert torch.equal(features.tokens[:, 1:], without.tokens[:, 1:])
