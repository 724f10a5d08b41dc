"""Both stages of pretraining: every loss, every prediction and every gradient equal the original's."""

import pytest
import torch
from support.golden_cases import (
    LOSS,
    TOKENS,
    UNIT,
    assert_gradients_match,
    assert_near,
    case,
    golden_model,
    place,
    rows,
)
from support.training import terms

from onepeace.data.batch import Batch, make_mask
from onepeace.train.objective import Objective, Passes

DENOISING = {"scale": 2.5, "label_smoothing": 0.1}
# Their name of each loss term: ours, by case.
STAGES = {
    "image_text": {
        "terms": {
            "contrastive": {"weight": 1.0, "detach_keys": True},
            "denoising/text": {"weight": 0.5, **DENOISING},
            "denoising/image": {"weight": 1.0, **DENOISING},
            "denoising/text+image": {"weight": 0.5, **DENOISING},
        },
        "names": {
            "itc_loss": "contrastive/text+image",
            "dcl_text_loss": "denoising/text",
            "dcl_image_loss": "denoising/image",
            "dcl_vl_text_loss": "denoising/text+image:text",
            "dcl_vl_image_loss": "denoising/text+image:image",
        },
        "joint": "vl",
    },
    "audio_text": {
        "terms": {
            "contrastive": {"weight": 1.0, "detach_keys": True},
            "denoising/audio": {"weight": 1.0, "teacher": "joint", **DENOISING},
            "denoising/text+audio": {"weight": 0.5, **DENOISING},
        },
        "names": {
            "atc_loss": "contrastive/text+audio",
            "dcl_audio_loss": "denoising/audio",
            "dcl_al_text_loss": "denoising/text+audio:text",
            "dcl_al_audio_loss": "denoising/text+audio:audio",
        },
        "joint": "al",
    },
}


def step(stage, padded=False):
    """The model, the batch with its masks, and the case of one stage."""
    found = case(f"pretrain_{stage}" + ("_padded" if padded else ""))
    batch = found.batch()
    model = golden_model(" ".join(batch), decoder=True, projections=True)
    masks = {key: {} for key in batch}
    for key in batch:
        for ours, theirs in {"unimodal": key, "joint": f"{STAGES[stage]['joint']}_{key}"}.items():
            if f"{theirs}_preserve_ids" in found.inputs:
                hidden = found.inputs[f"{theirs}_mask_indices"][:, 1:]
                masks[key][ours] = make_mask(hidden, model.adapters[key].token_lengths(batch[key]).numpy())
                assert torch.equal(masks[key][ours].keep, found.inputs[f"{theirs}_preserve_ids"])
    return model, Batch(batch, masks=masks), found


def students(model, batch, stage):
    """Predictions by the original's names."""
    passes, together = Passes(model, batch), STAGES[stage]["joint"]
    found = {f"student_{key}": passes.unimodal_masked(key) for key in passes.keys if "unimodal" in batch.masks[key]}
    return found | {f"student_{together}_{key}": tokens for key, tokens in passes.joint_masked.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_pretrain_loss_and_grads_match_golden(stage):
    model, batch, found = step(stage)
    frozen = {place(name)[0] for name in found.info.get("frozen_parameters", [])}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    losses = Objective(model, terms(STAGES[stage]["terms"]), {})(batch)
    names = {"loss": "loss", **STAGES[stage]["names"]}
    assert set(losses) == {*names.values(), "padding"}
    for theirs, ours in names.items():
        assert_near(losses[ours].reshape(1), found.outputs[theirs], LOSS)
    assert_near(model.logit_scale.exp().detach().reshape(1), found.outputs["logit_scale_exp"], 1e-5)
    losses["loss"].backward()
    assert_gradients_match(model, found.grads, found.info["grad_norm"])
    with_grad = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_grad == {place(name)[0] for name in found.grads} - {None}
    norm = torch.stack([p.grad.double().norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(found.info["grad_norm"], rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_pretrain_predictions_match_golden(stage):
    model, batch, found = step(stage)
    predictions = students(model, batch, stage)
    assert set(predictions) == {name for name in found.outputs if name.startswith("student_")}
    for name, tokens in predictions.items():
        assert_near(tokens, found.outputs[name], TOKENS)


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_padded_pretrain_matches_the_original_on_each_item_alone(stage):
    model, batch, found = step(stage, padded=True)
    alone = {name.removeprefix("alone_"): x for name, x in found.outputs.items() if name.startswith("alone_")}
    losses = Objective(model, terms(STAGES[stage]["terms"]), {})(batch)
    for theirs, ours in STAGES[stage]["names"].items():
        # The text and picture vectors of the padded batch are those of the items alone, in the original too.
        assert_near(losses[ours].reshape(1), alone.get(theirs, found.outputs[theirs]), LOSS)
    predictions = students(model, batch, stage)
    lengths = {key: adapter.token_lengths(batch.inputs[key]) + 1 for key, adapter in model.adapters.items()}
    for name, tokens in predictions.items():
        expected = alone.get(name, found.outputs[name])
        assert_near(tokens, expected, TOKENS, rows(lengths[name.rpartition("_")[2]], tokens.shape[1]))
    if "audio_embed" in alone:
        assert_near(model({"audio": batch.inputs["audio"]})["audio"], alone["audio_embed"], UNIT)
