"""Vectors and token features equal the original's, given the original's weights."""

import pytest
import torch
from support.golden_cases import (
    FIELD,
    HOP,
    TOKENS,
    UNIT,
    assert_near,
    case,
    golden_model,
    text_batch,
    text_rows,
)

from onepeace.special_ids import PAD


@pytest.fixture(scope="module")
def model():
    return golden_model("text image audio", decoder=True, projections=True).eval()


@pytest.fixture(scope="module")
def embed():
    return case("embed")


@pytest.fixture(scope="module")
def batch(embed):
    return {
        "text": text_batch(embed.inputs["text"]),
        "image": {"pixels": embed.inputs["image"].float()},
        "audio": {
            "waveform": embed.inputs["audio_equal"],
            "lengths": torch.tensor([1600, 1600]),
        },
    }


@torch.no_grad()
@pytest.mark.parametrize("key", ["text", "image", "audio"])
def test_each_modality_matches_golden(model, embed, batch, key):
    where = text_rows(embed.inputs["text"]) if key == "text" else None
    alone = {key: batch[key]}
    assert_near(model.features(alone)[key], embed.outputs[f"{key}_tokens"], TOKENS, where)
    assert_near(model(alone)[key], embed.outputs[f"{key}_embed"], UNIT)


@torch.no_grad()
def test_text_alone_matches_golden(model, embed):
    for number, ids in enumerate(embed.inputs["text"]):
        batch = {"text": {"ids": ids[None, ids != PAD]}}
        assert_near(model.features(batch)["text"], embed.outputs[f"text_alone_{number}_tokens"], TOKENS)
        assert_near(model(batch)["text"], embed.outputs[f"text_alone_{number}_embed"], UNIT)


@torch.no_grad()
def test_audio_in_a_padded_batch_matches_the_original_alone(model, embed):
    lengths = embed.inputs["audio_lengths"]
    batch = {"audio": {"waveform": embed.inputs["audio_padded"], "lengths": lengths}}
    tokens = model.features(batch)["audio"]
    vectors = model(batch)["audio"]
    for number, length in enumerate(lengths.tolist()):
        num_tokens = 2 + (length - FIELD) // HOP
        expected = embed.outputs[f"audio_alone_{number}_tokens"]
        assert_near(tokens[number, None, :num_tokens], expected, TOKENS)
        assert_near(vectors[number, None], embed.outputs[f"audio_alone_{number}_embed"], UNIT)


@torch.no_grad()
def test_joint_pass_of_picture_and_text_matches_golden(model, embed):
    ids = embed.inputs["joint_text"]
    pixels = embed.inputs["joint_image"].float()
    tokens = model.features({"image": {"pixels": pixels}, "text": text_batch(ids)})
    assert_near(tokens["text"], embed.outputs["vl_text_tokens"], TOKENS, text_rows(ids))
    assert_near(tokens["image"], embed.outputs["vl_image_tokens"], TOKENS)


@torch.no_grad()
def test_joint_pass_of_sound_and_text_matches_golden(model, embed, batch):
    ids = embed.inputs["joint_audio_text"]
    tokens = model.features({"audio": batch["audio"], "text": text_batch(ids)})
    assert_near(tokens["text"], embed.outputs["al_text_tokens"], TOKENS, text_rows(ids))
    assert_near(tokens["audio"], embed.outputs["al_audio_tokens"], TOKENS)


@pytest.mark.parametrize(
    ("stored", "used", "after"),
    [
        (5.2, 100.0, 4.605170249938965),
        (-0.3, 1.0, 0.0),
    ],
)
def test_logit_scale_is_clamped(stored, used, after):
    model = golden_model("text", projections=True)
    with torch.no_grad():
        model.logit_scale.fill_(stored)
    model.clamp_logit_scale()
    scale = model.logit_scale.exp()
    assert scale.requires_grad
    assert scale.item() == pytest.approx(used, rel=1e-6)
    assert model.logit_scale.item() == pytest.approx(after, rel=1e-6)
