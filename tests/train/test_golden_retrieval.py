"""Fine-tuning for retrieval, with a bias table per block: losses and gradients equal the original's."""

import pytest
import torch
from support.golden_cases import LOSS, assert_gradients_match, assert_near, case, golden_model
from support.training import terms

from onepeace.data.batch import Batch
from onepeace.train.objective import Objective


def backward(name, label_smoothing):
    batch = case(name).batch()
    model = golden_model(" ".join(batch), projections=True, bias_per_block=True)
    term = {"weight": 1.0, "detach_keys": True, "label_smoothing": label_smoothing}
    loss = Objective(model, terms({"contrastive": term}))(Batch(batch))["loss"]
    loss.backward()
    return model, loss


@pytest.mark.parametrize(("suffix", "label_smoothing"), [("", 0.0), ("_smooth01", 0.1)])
@pytest.mark.parametrize("pair", ["image_text", "audio_text"])
def test_retrieval_matches_golden(pair, suffix, label_smoothing):
    found = case(f"retrieval_{pair}{suffix}")
    model, loss = backward(f"retrieval_{pair}", label_smoothing)
    assert_near(loss.reshape(1), found.outputs["loss"], LOSS)
    assert_near(model.logit_scale.exp().reshape(1), found.outputs["logit_scale_exp"], 1e-5)
    if found.grads:
        assert_gradients_match(model, found.grads, found.info["grad_norm"])
    with torch.no_grad():
        text, other = model(case(f"retrieval_{pair}").batch()).values()
    similarity, own, letter = other @ text.T, torch.arange(len(text)), pair[0]
    assert int((similarity.argmax(1) == own).sum()) == found.outputs[f"{letter}2t_ncorrect"]
    assert int((similarity.argmax(0) == own).sum()) == found.outputs[f"t2{letter}_ncorrect"]


@pytest.mark.parametrize("pair", ["image_text", "audio_text"])
def test_every_retrieval_gradient_matches_golden(shared, pair):
    found = case(f"retrieval_{pair}", shared / "golden")
    model, _ = backward(f"retrieval_{pair}", 0.0)
    assert_gradients_match(model, found.grads, found.info["grad_norm"])
