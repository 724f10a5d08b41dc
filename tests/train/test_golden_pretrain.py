"""Both stages of pretraining: every loss, every prediction and every gradient equal the original's."""

import pytest
import torch
from support.golden_cases import LOSS, TOKENS, UNIT, assert_gradients_match, assert_near, place, rows
from support.golden_stages import STAGES, golden_step


def our_names(names):
    """Our names of the original's tensors, without those that nothing reads."""
    return {place(name)[0] for name in names} - {None}


def freeze_as_golden(step):
    frozen = our_names(step.golden.info.get("frozen_parameters", []))
    for name, parameter in step.model.named_parameters():
        parameter.requires_grad_(name not in frozen)


@pytest.mark.parametrize("stage", STAGES)
def test_pretrain_loss_and_grads_match_golden(stage):
    step = golden_step(stage)
    freeze_as_golden(step)
    golden = step.golden

    losses = step.losses(stage)
    losses["loss"].backward()

    names = {"loss": "loss", **STAGES[stage].loss_names}
    assert set(losses) == {*names.values(), "padding"}
    for original, name in names.items():
        assert_near(losses[name].reshape(1), golden.outputs[original], LOSS)
    scale = step.model.logit_scale.exp().detach()
    assert_near(scale.reshape(1), golden.outputs["logit_scale_exp"], 1e-5)

    gradients = step.gradients()
    assert set(gradients) == our_names(golden.grads)
    assert_gradients_match(step.model, golden.grads, golden.info["grad_norm"])
    norms = [gradient.double().norm() for gradient in gradients.values()]
    assert torch.stack(norms).norm().item() == pytest.approx(golden.info["grad_norm"], rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_pretrain_predictions_match_golden(stage):
    step = golden_step(stage)

    predictions = step.predictions(stage)

    assert set(predictions) == {name for name in step.golden.outputs if name.startswith("student_")}
    for name, tokens in predictions.items():
        assert_near(tokens, step.golden.outputs[name], TOKENS)


@torch.no_grad()
@pytest.mark.parametrize("stage", STAGES)
def test_padded_pretrain_matches_each_item_alone(stage):
    step = golden_step(stage, padded=True)
    # The text and picture vectors of the padded batch are those of the items alone, in the original too.
    expected = dict(step.golden.outputs)
    for name, tensor in step.golden.outputs.items():
        if name.startswith("alone_"):
            expected[name.removeprefix("alone_")] = tensor

    losses = step.losses(stage)
    for original, name in STAGES[stage].loss_names.items():
        assert_near(losses[name].reshape(1), expected[original], LOSS)

    inputs = step.batch.inputs
    for name, tokens in step.predictions(stage).items():
        key = name.rpartition("_")[2]
        lengths = step.model.adapters[key].token_lengths(inputs[key]) + 1
        assert_near(tokens, expected[name], TOKENS, rows(lengths, tokens.shape[1]))

    if "audio" in inputs:
        vectors = step.model({"audio": inputs["audio"]})
        assert_near(vectors["audio"], expected["audio_embed"], UNIT)
