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
        "audio": {"waveform": embed.inputs["audio_equal"], "lengths": torch.tensor([1600, 1600])},
    }


@torch.no_grad()
@pytest.mark.parametrize("key", ["text", "image", "audio"])
def test_each_modality_matches_golden(model, embed, batch, key):
    where = text_rows(embed.inputs["text"]) if key == "text" else None
    assert_near(model.features({key: batch[key]})[key], embed.outputs[f"{key}_tokens"], TOKENS, where)
    assert_near(model({key: batch[key]})[key], embed.outputs[f"{key}_embed"], UNIT)


@torch.no_grad()
def test_text_alone_matches_golden(model, embed):
    for item, row in enumerate(embed.inputs["text"]):
        batch = {"text": {"ids": row[None, : int((row != 1).sum())]}}
        assert_near(model.features(batch)["text"], embed.outputs[f"text_alone_{item}_tokens"], TOKENS)
        assert_near(model(batch)["text"], embed.outputs[f"text_alone_{item}_embed"], UNIT)


@torch.no_grad()
def test_audio_in_a_padded_batch_matches_the_original_alone(model, embed):
    lengths = embed.inputs["audio_lengths"]
    batch = {"audio": {"waveform": embed.inputs["audio_padded"], "lengths": lengths}}
    tokens, vectors = model.features(batch)["audio"], model(batch)["audio"]
    for item in range(3):
        expected = embed.outputs[f"audio_alone_{item}_tokens"]
        assert expected.shape[1] == 2 + (int(lengths[item]) - FIELD) // HOP
        assert_near(tokens[item : item + 1, : expected.shape[1]], expected, TOKENS)
        assert_near(vectors[item : item + 1], embed.outputs[f"audio_alone_{item}_embed"], UNIT)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "text", "other"), [("vl", "joint_text", "image"), ("al", "joint_audio_text", "audio")]
)
def test_joint_pass_matches_golden(model, embed, batch, name, text, other):
    ids = embed.inputs[text]
    inputs = {"pixels": embed.inputs["joint_image"].float()} if other == "image" else batch[other]
    tokens = model.features({other: inputs, "text": text_batch(ids)})
    assert_near(tokens["text"], embed.outputs[f"{name}_text_tokens"], TOKENS, text_rows(ids))
    assert_near(tokens[other], embed.outputs[f"{name}_{other}_tokens"], TOKENS)


@torch.no_grad()
def test_enlarged_picture_matches_golden():
    """A model of 64 pixels read for 96: bias table resampled at load, positions on the fly."""
    resized = case("resized")
    batch = {"image": {"pixels": resized.inputs["image"].float()}}
    model = golden_model("image", projections=True, options={"image": {"bias_grid": 6}}).eval()
    assert_near(model.adapters["image"].bias_tables[0], resized.outputs["rel_pos_table_4_to_6"], 1e-6)
    assert_near(model.adapters["image"].pos_embed((6, 6))[0], resized.outputs["pos_embed_4_to_6_on_the_fly"], 1e-6)
    assert_near(model.features(batch)["image"], resized.outputs["image_tokens"], TOKENS)
    assert_near(model(batch)["image"], resized.outputs["image_embed"], UNIT)
    assert_near(model(batch)["image"], resized.outputs["image_embed_resized_at_load"], UNIT)


@pytest.mark.parametrize(("stored", "used", "after"), [(5.2, 100.0, 4.605170249938965), (-0.3, 1.0, 0.0)])
def test_logit_scale_is_clamped(stored, used, after):
    model = golden_model("text", projections=True)
    with torch.no_grad():
        model.logit_scale.fill_(stored)
    model.clamp_logit_scale()
    scale = model.logit_scale.exp()
    assert scale.requires_grad
    assert scale.item() == pytest.approx(used, rel=1e-6)
    assert model.logit_scale.item() == pytest.approx(after, rel=1e-6)
