"""The video branch equals the original's: attention over time and over places, adapters, time embeddings."""

import pytest
import torch
from support.golden_cases import TOKENS, assert_near, case, golden_model
from support.hub_layouts import video_network

from onepeace.model.encoder import encode

HEAD = {"kind": "classifier", "on": "video", "num_classes": 5, "pool": "cls", "hidden_ratio": 0}


@pytest.fixture(scope="module")
def model():
    return golden_model("video", logit_scale=False, heads={"classifier": HEAD}, extra=video_network()).eval()


@pytest.fixture(scope="module")
def batch():
    return {"pixels": case("vision_video").inputs["frames"].float().transpose(1, 2)}


@torch.no_grad()
def test_cls_of_each_frame_matches_golden(model, batch):
    adapter = model.adapters["video"]
    found = encode(adapter(adapter.stem_tokens(batch)), model.blocks, model.norms)["video"]
    golden = case("vision_video").outputs["features"]
    assert_near(found.cls, golden.flatten(2).transpose(1, 2).flatten(0, 1), TOKENS)


@torch.no_grad()
def test_item_features_are_the_mean_of_the_frames_cls_and_all_patches(model, batch):
    features = model.encode(model.stems({"video": batch}), out_indices=[1])["video"]
    golden = case("vision_video").outputs["features"]
    assert_near(features.cls, golden.mean((2, 3, 4)), TOKENS)
    assert features.grid == (4, 4, 4)
    assert features.tokens.shape == features.intermediates[0].tokens.shape == (2, 1 + 4 * 16, 32)
    assert features.feature_map().shape == (2, 32, 4, 4, 4)
    assert model.adapters["video"].token_lengths(batch).tolist() == [64, 64]
