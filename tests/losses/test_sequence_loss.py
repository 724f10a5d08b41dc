"""The loss of written sequences: the original's numbers, and what must not matter."""

import json

import pytest
import torch
from support.golden_ofa import CODES, FOLDER, golden

from onepeace.losses import sequence_loss, smoothed_cross_entropy

CASES = json.loads((FOLDER / "losses.json").read_text())


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
        case.get("drop_worst_ratio", 0.0) if drops else 0.0,
        case.get("reg_alpha", 0.0) if case.get("use_rdrop") else 0.0,
    )

    assert loss.tokens == case["ntokens"]
    assert loss.total.item() == pytest.approx(case["loss"], rel=1e-6)
    assert loss.nll.item() == pytest.approx(case["nll_loss"], rel=1e-6)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator)
    target = torch.tensor([[4, 5, 2, 1, 1], [6, 2, 1, 1, 1], [7, 8, 9, 10, 2]])
    return logits, target


def test_smoothing_is_torchs_but_for_the_share_of_the_target(batch):
    logits, target = batch
    ours = sequence_loss(logits, target, label_smoothing=0.1).total
    # torch spreads the mass over all ids, fairseq over the wrong ones.
    theirs = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), label_smoothing=0.1 * 11 / 10, ignore_index=1, reduction="sum"
    )
    torch.testing.assert_close(ours, theirs)


def test_logits_of_padding_do_not_matter(batch):
    logits, target = batch
    noisy = torch.where((target == 1).unsqueeze(-1), torch.nan, logits).requires_grad_()
    loss = sequence_loss(noisy, target, label_smoothing=0.1)
    loss.total.backward()
    torch.testing.assert_close(loss.total, sequence_loss(logits, target, label_smoothing=0.1).total)
    assert not noisy.grad[target == 1].any()
    assert bool(torch.isfinite(noisy.grad).all())


def test_weights_multiply_log_probabilities(batch):
    logits, target = batch
    rows = [sequence_loss(logits[i : i + 1], target[i : i + 1], label_smoothing=0.1).total for i in range(3)]
    weights = torch.tensor([1.0, 0.5, 2.0])
    whole = sequence_loss(logits, target, weights=weights, label_smoothing=0.1).total
    torch.testing.assert_close(whole, (torch.stack(rows) * weights).sum())


def test_confined_loss_is_that_of_the_allowed_ids_alone(batch):
    logits, target = batch
    allowed = torch.zeros(11, dtype=torch.bool)
    allowed[2:] = True
    confined = logits.clone().requires_grad_()

    loss = sequence_loss(confined, target, allowed=allowed, label_smoothing=0.1)
    loss.total.backward()

    alone = sequence_loss(logits[..., 2:], target - 2, padding=-1, label_smoothing=0.1)
    torch.testing.assert_close(loss.total, alone.total)
    torch.testing.assert_close(
        loss.total, sequence_loss(logits, target, allowed=allowed.expand(3, 5, 11), label_smoothing=0.1).total
    )
    assert not confined.grad[..., :2].any()


def test_a_token_without_alternatives_costs_nothing(batch):
    logits, target = batch
    only = torch.nn.functional.one_hot(target, 11).bool()
    scores = logits.clone().requires_grad_()
    loss = sequence_loss(scores, target, allowed=only, label_smoothing=0.1)
    loss.total.backward()
    assert loss.total.item() == 0
    assert not scores.grad.any()


def test_r_drop_ignores_ids_that_are_impossible_in_both_passes(batch):
    logits, target = batch
    allowed = torch.arange(11) >= 2
    twice = torch.cat([logits, logits + 0.3 * torch.randn_like(logits)]).requires_grad_()
    loss = sequence_loss(twice, target.repeat(2, 1), allowed=allowed, r_drop=1.0)
    loss.total.backward()
    assert bool(torch.isfinite(twice.grad).all())
    plain = sequence_loss(twice, target.repeat(2, 1), allowed=allowed)
    assert loss.total > plain.total
    same = sequence_loss(logits.repeat(2, 1, 1), target.repeat(2, 1), allowed=allowed, r_drop=1.0)
    torch.testing.assert_close(same.total, 2 * sequence_loss(logits, target, allowed=allowed).total)


def test_half_precision_logits_are_summed_in_float32(batch):
    logits, target = batch
    exact = sequence_loss(logits.bfloat16().float(), target).total
    assert torch.equal(sequence_loss(logits.bfloat16(), target).total, exact)


def test_shapes_that_do_not_fit_are_named(batch):
    logits, target = batch
    with pytest.raises(ValueError, match=r"logits \(3, 5, 11\) and target \(3, 4\) must share"):
        sequence_loss(logits, target[:, :4])
