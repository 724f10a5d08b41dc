"""What clips are made of: frames that are pictures, related by the blocks."""

import pytest
import torch
from support.small_models import batch_of, item, small_model

from onepeace.config import ModelConfig
from onepeace.errors import UserError
from onepeace.model import OnePeace

ADAPTERS = {"image": {"grid": 3, "bias_grid": 3}, "video": {"grid": 3, "bias_grid": 3, "frames": 2}}


@torch.no_grad()
def test_new_video_model_is_the_picture_model_on_each_frame():
    """Adapters between frames and embeddings of time start as zero."""
    pictures = small_model("image")
    given = {name.replace(".image.", ".video."): tensor for name, tensor in pictures.state_dict().items()}
    clips = OnePeace(ModelConfig(32, 24, 2, 4, 48, adapters={"video": ADAPTERS["video"]})).eval()
    lacking = clips.load_state_dict(given, strict=False).missing_keys
    assert "adapters.video.time_embed" in lacking
    assert all(".clips." in name or name == "adapters.video.time_embed" for name in lacking)

    pixels = item("video", 0)["pixels"]
    frames = pictures.encode(pictures.stems({"image": {"pixels": pixels[0]}}))["image"].tokens
    clip = clips.encode(clips.stems({"video": {"pixels": pixels}}))["video"].tokens[0]

    torch.testing.assert_close(clip[0], frames[:, 0].mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(clip[1:], frames[:, 1:].flatten(0, 1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_order_of_the_frames_matters():
    model = small_model("video")
    pixels = item("video", 0)["pixels"]
    there, back = (model({"video": {"pixels": x}})["video"] for x in (pixels, pixels.flip(1)))
    assert (there - back).abs().max() > 1e-3


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
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_clips_are_encoded_whole_alone_and_with_all_their_frames():
    model = small_model("text", "video")
    batch = batch_of(model, [0])
    with pytest.raises(UserError, match="video cannot be encoded jointly"):
        model.features(batch)
    stems = model.stems({"video": batch["video"]})
    with pytest.raises(ValueError, match="tokens of a clip cannot be masked"):
        model.encode(stems, {"video": torch.zeros(1, 1, dtype=torch.long)})
    for shape in ((1, 3, 48, 48), (1, 3, 3, 48, 48)):
        with pytest.raises(ValueError, match=r"pixels of clips should be \(B, 2, \.\.\.\), not \(1, 3"):
            model.stems({"video": {"pixels": torch.zeros(shape)}})
