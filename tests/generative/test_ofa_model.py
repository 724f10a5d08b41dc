"""OFA as a module: its cache, what must not matter for a result, sizes, training modes, errors."""

import pytest
import torch
from support.golden_ofa import SIZES, assert_near, golden, golden_ofa
from support.training import assert_same_tensors

from onepeace.errors import UserError
from onepeace.generative.config import OFA_SIZES, OFAConfig
from onepeace.generative.model import OFA
from onepeace.special_ids import PAD

PARAMETERS = {
    "tiny": 32_925_200,
    "medium": 91_765_728,
    "base": 180_383_720,
    "large": 469_842_432,
    "huge": 925_899_264,
}
"""Sizes of the original's networks, less what pictures are written with: 4 D + 1,765 D and a table in each block."""


@pytest.fixture(scope="module")
def ofa():
    return golden_ofa()


@pytest.fixture(scope="module")
def case():
    """Three texts of different lengths, each with a picture."""
    return golden("caption")


@pytest.fixture
def encoded(ofa, case):
    with torch.no_grad():
        return ofa.encode(case["ids"], case["pixels"])


def logits_of(model, case):
    return model(case["ids"], case["written"], case["pixels"])


@pytest.fixture(scope="module")
def logits(ofa, case):
    with torch.no_grad():
        return logits_of(ofa, case)


@pytest.mark.parametrize("size", PARAMETERS)
def test_sizes_have_the_originals_parameters(size):
    with torch.device("meta"):
        model = OFA(OFAConfig(**OFA_SIZES[size]))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    assert all(tensor.is_floating_point() for tensor in model.state_dict().values())


@torch.no_grad()
def test_result_does_not_depend_on_batch_mates(ofa, case, logits):
    for row in range(3):
        ids = case["ids"][row]
        written = case["written"][row]
        length = int((written != PAD).sum())
        alone = ofa(
            ids[None, ids != PAD],
            written[None, :length],
            case["pixels"][row, None],
        )
        assert_near(alone, logits[row, None, :length], 2e-6)


def gradients(model):
    case = golden("caption")
    logits = logits_of(model, case)
    logits[case["written"] != PAD].square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_checkpointing_changes_no_gradient():
    plain = golden_ofa().train()
    checkpointed = golden_ofa().train()
    checkpointed.set_grad_checkpointing()
    assert_same_tensors(gradients(checkpointed), gradients(plain))


def test_dropout_and_drop_path_act_in_training_only(case, logits):
    model = golden_ofa(dropout=0.2, drop_path=0.5)
    assert torch.equal(logits_of(model, case), logits)
    model.train()
    assert not torch.allclose(logits_of(model, case), logits, atol=1e-3)


def test_new_weights_are_berts():
    model = OFA(OFAConfig(**SIZES))
    for weight in (model.encoder.pos.q.weight, model.decoder.words.pos_embed, model.decoder.token_embed.weight):
        assert 0.015 < weight.std() < 0.025
    assert not model.decoder.token_embed.weight[PAD].any()
    assert not model.encoder.blocks[0].ffn.up.bias.any()
    for block in model.decoder.blocks:
        assert block.cross_attn.gain.tolist() == pytest.approx([1.0] * 4)
    convolution = model.encoder.stem.layer3[0].conv3.weight
    he_std = (2 / len(convolution)) ** 0.5
    assert convolution.std().item() == pytest.approx(he_std, rel=0.1)


def test_inputs_too_large_for_the_positions(ofa, encoded):
    with pytest.raises(UserError, match=r"129 x 64 .* 128"):
        ofa.encode(None, torch.zeros(1, 3, 129, 64))
    with pytest.raises(UserError, match=r"65 .* 64"):
        ofa.encode(torch.full((1, 65), 4))
    with pytest.raises(UserError, match=r"65 .* 64"):
        ofa.decoder.start(encoded, 65)
