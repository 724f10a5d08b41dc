"""Our OFA against the original's numbers: encoder, logits, losses, every gradient."""

import pytest
import torch
from support.golden_ofa import BATCH_STATISTICS, GRADIENT, OUTPUT, assert_near, golden, golden_ofa, part

from onepeace.generative.convert import to_ours
from onepeace.generative.terms import token_losses
from onepeace.layers.position import grid_buckets
from onepeace.special_ids import PAD

CASES = ("caption", "closed_answers")
CPU = torch.device("cpu")


def encoder_case(name):
    """The rows of a case with a picture: the original can hide one."""
    case = dict(golden(name))
    rows = case.get("image_rows")
    if rows is None:
        return case
    for key, value in case.items():
        if len(value) == len(rows):
            case[key] = value[rows]
    return case


@pytest.mark.parametrize(
    "name",
    [
        "encode",
        "encode_padded",
        "encode_large",
        "encode_text",
        "encode_long_text",
        "encode_interpolated",
        "encode_sampled_patches",
    ],
)
def test_encoder_gives_the_originals_tokens(name):
    case = encoder_case(name)
    model = golden_ofa(stretched_grid=4 if name == "encode_interpolated" else None)
    with torch.no_grad():
        encoded = model.encode(case["ids"], case.get("pixels"), case.get("keep"))

    padding_mask = case["out.padding_mask"]
    if encoded.padding_mask is None:
        assert not padding_mask.any()
    else:
        assert torch.equal(encoded.padding_mask, padding_mask)
    assert_near(encoded.tokens, case["out.encoder_out"], OUTPUT, ~padding_mask)
    if "out.position_embeddings" in case:
        assert_near(encoded.positions.expand_as(encoded.tokens), case["out.position_embeddings"], OUTPUT)


def decoder_case(name):
    """A golden case with the inputs that it shares with the case of captions."""
    if name not in ("closed_answers", "caption_train_mode"):
        return golden(name)
    inputs = {key: value for key, value in golden("caption").items() if "." not in key}
    return {**inputs, **golden(name)}


def logits_of(model, case):
    return model(case["ids"], case["written"], case.get("pixels"))


def backward(model, case):
    """The loss of a case, whose gradients the model has then."""
    losses = token_losses(
        logits_of(model, case),
        case["target"],
        allowed=case.get("allowed"),
        weights=case.get("weights"),
        label_smoothing=0.1,
    )
    losses.sum().backward()
    return losses


def assert_losses(losses, case):
    assert len(losses) == case["out.ntokens"]
    assert_near(losses.sum().detach(), case["out.loss"], OUTPUT)


def assert_gradients(model, expected, tolerance):
    """Gradients that are zero in exact arithmetic, of biases of keys, are compared absolutely."""
    noise = 1e-6 * max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        actual = model.get_parameter(to_ours(name)).grad
        assert actual.shape == gradient.shape
        assert bool(torch.isfinite(actual).all()), name
        difference = (actual - gradient).abs().max()
        assert difference <= max(tolerance * gradient.abs().max(), noise), name


@pytest.mark.parametrize("name", [*CASES, "grounding"])
def test_decoder_gives_the_originals_logits(name):
    case = decoder_case(name)
    with torch.no_grad():
        logits = logits_of(golden_ofa(), case)
    assert_near(logits, case["out.logits"], OUTPUT, case["written"] != PAD)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_the_originals(name):
    model = golden_ofa()
    case = decoder_case(name)
    assert_losses(backward(model, case), case)
    assert_gradients(model, part(case, "grad."), GRADIENT)


def test_every_parameter_has_a_golden_gradient():
    golden_names = {to_ours(name) for name in part(golden("caption"), "grad.")}
    assert golden_names == {name for name, _ in golden_ofa().named_parameters()}


def test_statistics_of_the_batch_are_trained_as_in_the_original():
    model = golden_ofa(freeze_stem_norms=False).train()
    case = decoder_case("caption_train_mode")
    assert_losses(backward(model, case), case)
    assert_gradients(model, part(case, "grad."), BATCH_STATISTICS)

    statistics = part(case, "stats.")
    assert len(statistics) == len(list(model.buffers())) > 0
    for name, expected in statistics.items():
        assert_near(model.get_buffer(to_ours(name)), expected, OUTPUT)


def test_buckets_of_patches_are_the_originals():
    rows = golden("buckets")["image_42_row_index"].long()
    buckets = grid_buckets(42, 42, CPU, 42)[0]
    assert torch.equal(buckets[rows], golden("buckets")["image_42_rows"].int())
