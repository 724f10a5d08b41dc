"""The loss of written sequences: the original's numbers, and what must not matter."""

import json

import pytest
import torch
from support.golden_ofa import FOLDER, golden
from torch.nn.functional import one_hot

from onepeace.generative.terms import smoothed_cross_entropy, token_losses, without_worst
from onepeace.special_ids import EOS, PAD

ALL_CASES = json.loads((FOLDER / "losses.json").read_text())
CASES = [name for name in sorted(ALL_CASES) if "reg_alpha" not in ALL_CASES[name]]
"""R-Drop, two passes over the same items, is not ours."""


def total(logits, target, **options):
    return token_losses(logits, target, label_smoothing=0.1, **options).sum()


def allowed_codes():
    """The codes to which the original restricts a case."""
    allowed = torch.zeros(137, dtype=torch.bool)
    allowed[:4] = True
    allowed[65:97] = True
    return allowed


@pytest.mark.parametrize("name", CASES)
def test_loss_is_the_originals(name):
    case = ALL_CASES[name]
    allowed = allowed_codes() if "constraint_start" in case else None
    inputs = golden("losses")
    losses = smoothed_cross_entropy(inputs["lprobs"], inputs["target"], allowed, case["epsilon"])
    # The original leaves tokens out after a number of updates; who trains decides that here.
    if case["update_num"] > case.get("drop_worst_after", 0):
        losses = without_worst(losses, case.get("drop_worst_ratio", 0.0))

    assert len(losses) == case["ntokens"]
    assert losses.sum().item() == pytest.approx(case["loss"], rel=1e-6)


@pytest.fixture
def logits():
    return torch.randn(3, 5, 11, requires_grad=True)


TARGET = torch.tensor(
    [
        [4, 5, EOS, PAD, PAD],
        [6, EOS, PAD, PAD, PAD],
        [7, 8, 9, 10, EOS],
    ]
)
IS_REAL = TARGET != PAD


def test_logits_of_padding_do_not_matter(logits):
    noisy = logits.detach().masked_fill(~IS_REAL[..., None], torch.nan)
    noisy.requires_grad_()
    loss = total(noisy, TARGET)
    loss.backward()
    torch.testing.assert_close(loss, total(logits, TARGET))
    assert not noisy.grad[~IS_REAL].any()
    assert bool(torch.isfinite(noisy.grad).all())


def test_token_without_alternatives_costs_nothing(logits):
    loss = total(logits, TARGET, allowed=one_hot(TARGET, 11).bool())
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
