"""The loss of written sequences: the original's numbers, and what must not matter."""

import json

import pytest
import torch
from support.golden_ofa import FOLDER, golden

from onepeace.losses import smoothed_cross_entropy, token_losses

CASES = {
    name: case for name, case in json.loads((FOLDER / "losses.json").read_text()).items() if "reg_alpha" not in case
}
"""R-Drop, two passes over the same items, is not ours."""
CODES = range(65, 97)
"""Ids that the original restricts a case to."""


def total(logits, target, **options):
    return token_losses(logits, target, **options).loss.sum()


def allowed_codes():
    mask = torch.zeros(137, dtype=torch.bool)
    mask[:4], mask[CODES.start : CODES.stop] = True, True
    return mask


@pytest.mark.parametrize("name", sorted(CASES))
def test_loss_is_the_originals(name):
    case = CASES[name]
    # The original leaves tokens out after a number of updates; who trains decides that here.
    drops = case["update_num"] > case.get("drop_worst_after", 0)

    loss = smoothed_cross_entropy(
        golden("losses")["lprobs"],
        golden("losses")["target"],
        allowed_codes() if "constraint_start" in case else None,
        case["epsilon"],
    ).without_worst(case.get("drop_worst_ratio", 0.0) if drops else 0.0)

    assert len(loss.loss) == case["ntokens"]
    assert loss.loss.sum().item() == pytest.approx(case["loss"], rel=1e-6)
    assert loss.nll.sum().item() == pytest.approx(case["nll_loss"], rel=1e-6)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator)
    target = torch.tensor([[4, 5, 2, 1, 1], [6, 2, 1, 1, 1], [7, 8, 9, 10, 2]])
    return logits, target


def test_smoothing_is_torchs_but_for_the_share_of_the_target(batch):
    logits, target = batch
    ours = total(logits, target, label_smoothing=0.1)
    # torch spreads the mass over all ids, fairseq over the wrong ones.
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), label_smoothing=0.1 * 11 / 10, ignore_index=1, reduction="sum"
    )
    torch.testing.assert_close(ours, theirs)


def test_logits_of_padding_do_not_matter(batch):
    logits, target = batch
    noisy = torch.where((target == 1).unsqueeze(-1), torch.nan, logits).requires_grad_()
    loss = total(noisy, target, label_smoothing=0.1)
    loss.backward()
    torch.testing.assert_close(loss, total(logits, target, label_smoothing=0.1))
    assert not noisy.grad[target == 1].any()
    assert bool(torch.isfinite(noisy.grad).all())


def test_weights_multiply_log_probabilities(batch):
    logits, target = batch
    rows = [total(logits[i : i + 1], target[i : i + 1], label_smoothing=0.1) for i in range(3)]
    weights = torch.tensor([1.0, 0.5, 2.0])
    whole = total(logits, target, weights=weights, label_smoothing=0.1)
    torch.testing.assert_close(whole, (torch.stack(rows) * weights).sum())


def test_confined_loss_is_that_of_the_allowed_ids_alone(batch):
    logits, target = batch
    allowed = torch.zeros(11, dtype=torch.bool)
    allowed[2:] = True
    confined = logits.clone().requires_grad_()

    loss = total(confined, target, allowed=allowed, label_smoothing=0.1)
    loss.backward()

    real = target != 1
    log_probs = logits[real][:, 2:].log_softmax(-1)
    alone = smoothed_cross_entropy(log_probs, target[real] - 2, None, 0.1).loss.sum()
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(loss, total(logits, target, allowed=allowed.expand(3, 5, 11), label_smoothing=0.1))
    assert not confined.grad[..., :2].any()


def test_a_token_without_alternatives_costs_nothing(batch):
    logits, target = batch
    only = torch.nn.functional.one_hot(target, 11).bool()
    scores = logits.clone().requires_grad_()
    loss = total(scores, target, allowed=only, label_smoothing=0.1)
    loss.backward()
    assert loss.item() == 0
    assert not scores.grad.any()
