"""What clips are made of: frames that are pictures, related by the blocks."""

import pytest
import torch
from support.golden_cases import assert_near
from support.small_models import VARIANTS, assert_gradients_everywhere, batch_of, item, small_model

from onepeace.config import ModelConfig
from onepeace.errors import UserError
from onepeace.model import OnePeace


@pytest.fixture(scope="module")
def pixels():
    return item("video", 0)["pixels"]


@torch.no_grad()
def test_new_video_model_is_the_picture_model_on_each_frame(pixels):
    """Adapters between frames and embeddings of time start as zero."""
    pictures = small_model("image")
    state = {}
    for name, tensor in pictures.state_dict().items():
        state[name.replace(".image.", ".video.")] = tensor
    config = ModelConfig(32, 24, 2, 4, 48, adapters={"video": VARIANTS["video"][1]})
    clips = OnePeace(config).eval()
    new_names = clips.load_state_dict(state, strict=False).missing_keys
    new_names.remove("adapters.video.time_embed")
    assert all(".clips." in name for name in new_names)

    frames = pictures.features({"image": {"pixels": pixels[0]}})["image"]
    (clip,) = clips.encode(clips.stems({"video": {"pixels": pixels}}))["video"].tokens
    patches = frames[:, 1:].flatten(0, 1)
    assert_near(clip[0], frames[:, 0].mean(0), 1e-5)
    assert_near(clip[1:], patches, 1e-5)


@torch.no_grad()
def test_pictures_beside_clips_are_as_without():
    """A model of both: pictures go through the blocks as they did."""
    both = small_model("image", "video")
    alone = small_model("image")
    alone.load_state_dict(both.state_dict(), strict=False)
    batch = {"image": item("image", 0)}
    assert torch.equal(both(batch)["image"], alone(batch)["image"])


def test_every_weight_of_a_clip_is_trained():
    model = small_model("video", decoder=None, logit_scale=False)
    model(batch_of(model, [0, 1]))["video"].sum().backward()
    assert_gradients_everywhere(model)


def test_clips_are_not_encoded_jointly():
    model = small_model("text", "video")
    with pytest.raises(UserError, match="video"):
        model.features(batch_of(model, [0]))


def test_tokens_of_clips_are_not_masked(pixels):
    model = small_model("video")
    stems = model.stems({"video": {"pixels": pixels}})
    with pytest.raises(ValueError, match="mask"):
        model.encode(stems, {"video": torch.zeros(1, 1, dtype=torch.long)})
