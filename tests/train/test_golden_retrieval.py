"""Fine-tuning for retrieval, with a bias table per block: losses and gradients equal the original's."""

import pytest
from support.golden_cases import LOSS, assert_gradients_match, assert_near, case, golden_model
from support.training import terms

from onepeace.data.batch import Batch
from onepeace.train.objective import Objective

PAIRS = ["image_text", "audio_text"]


def backward(pair, label_smoothing):
    batch = case(f"retrieval_{pair}").batch()
    model = golden_model(" ".join(batch), projections=True, bias_per_block=True)
    term = {"weight": 1.0, "detach_keys": True, "label_smoothing": label_smoothing}
    loss = Objective(model, terms({"contrastive": term}))(Batch(batch))["loss"]
    loss.backward()
    return model, loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("pair", PAIRS)
def test_retrieval_matches_golden(pair, label_smoothing):
    golden = case(f"retrieval_{pair}_smooth01" if label_smoothing else f"retrieval_{pair}")

    model, loss = backward(pair, label_smoothing)

    assert_near(loss.reshape(1), golden.outputs["loss"], LOSS)
    assert_near(model.logit_scale.exp().reshape(1), golden.outputs["logit_scale_exp"], 1e-5)
    if golden.grads:
        assert_gradients_match(model, golden.grads, golden.info["grad_norm"])


@pytest.mark.parametrize("pair", PAIRS)
def test_every_retrieval_gradient_matches_golden(shared, pair):
    golden = case(f"retrieval_{pair}", shared / "golden")

    model, _ = backward(pair, label_smoothing=0.0)

    assert_gradients_match(model, golden.grads, golden.info["grad_norm"])
