"""The video branch equals the original's: attention over time and over places, adapters, time embeddings."""

import pytest
import torch
from support.golden_cases import TOKENS, assert_near, case, golden_model
from support.hub_layouts import video_network

from onepeace.model.encoder import encode

HEAD = {"kind": "classifier", "on": "video", "num_classes": 5, "pool": "cls", "hidden_ratio": 0}


@pytest.fixture(scope="module")
def model():
    model = golden_model(
        "video",
        logit_scale=False,
        heads={"classifier": HEAD},
        extra=video_network(),
    )
    return model.eval()


@pytest.fixture(scope="module")
def batch():
    frames = case("vision_video").inputs["frames"]
    return {"pixels": frames.float().transpose(1, 2)}


@pytest.fixture(scope="module")
def cls_of_frames():
    """The original's (B, D, frames)."""
    return case("vision_video").outputs["features"].flatten(2)


@torch.no_grad()
def test_cls_of_each_frame_matches_golden(model, batch, cls_of_frames):
    adapter = model.adapters["video"]
    tokens = adapter(adapter.stem_tokens(batch))
    features = encode(tokens, model.blocks, model.norms)["video"]
    assert_near(features.cls, cls_of_frames.transpose(1, 2).flatten(0, 1), TOKENS)


@pytest.fixture(scope="module")
def item_features(model, batch):
    with torch.no_grad():
        stems = model.stems({"video": batch})
        return model.encode(stems, out_indices=[1])["video"]


def test_cls_of_an_item_is_the_mean_of_its_frames(item_features, cls_of_frames):
    assert_near(item_features.cls, cls_of_frames.mean(2), TOKENS)


def test_item_has_the_patches_of_all_frames(model, batch, item_features):
    assert item_features.grid == (4, 4, 4)
    assert item_features.tokens.shape == (2, 1 + 4 * 16, 32)
    assert item_features.intermediates[0].tokens.shape == (2, 1 + 4 * 16, 32)
    assert item_features.feature_map().shape == (2, 32, 4, 4, 4)
    assert model.adapters["video"].token_lengths(batch).tolist() == [64, 64]
