"""Our OFA against the original's numbers: encoder, logits, losses, every gradient."""

import pytest
import torch
from support.golden_ofa import BATCH_STATISTICS, GRADIENT, OUTPUT, assert_near, golden, golden_ofa, part

from onepeace.hub.convert.ofa import to_ours
from onepeace.layers.position import grid_buckets, sequence_buckets
from onepeace.losses import token_losses

CASES = ("caption", "closed_answers")


@pytest.mark.parametrize(
    "name",
    ["encode", "encode_padded", "encode_large", "encode_text", "encode_long_text", "encode_interpolated",
     "encode_sampled_patches"],
)  # fmt: skip
def test_encoder_gives_the_originals_tokens(name):
    case = golden(name)
    model = golden_ofa(stretched_grid=4 if name == "encode_interpolated" else None)
    seen = case.get("image_rows", torch.ones(len(case["ids"]), dtype=torch.bool))  # the original can hide a picture
    case = {key: value[seen] if len(value) == len(seen) else value for key, value in case.items()}

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
    if "out.stem" in case:
        assert_near(model.encoder.stem(case["pixels"]), case["out.stem"], OUTPUT)


def inputs(name):
    """A case with what it shares with others."""
    case = dict(golden(name))
    if name in ("closed_answers", "caption_train_mode"):
        case = {**{key: value for key, value in golden("caption").items() if "." not in key}, **case}
    return case


def logits_of(model, case):
    return model(case["ids"], case["written"], case.get("pixels"))


def loss_of(logits, case):
    allowed, weights = case.get("allowed"), case.get("weights")
    return token_losses(logits, case["target"], allowed=allowed, weights=weights, label_smoothing=0.1)


def assert_loss(loss, case):
    assert len(loss.loss) == case["out.ntokens"]
    assert_near(loss.loss.sum().detach(), case["out.loss"], OUTPUT)
    assert_near(loss.nll.sum().detach(), case["out.nll_loss"], OUTPUT)


def assert_gradients(model, expected, tolerance):
    """Gradients that are zero in exact arithmetic, of biases of keys, are compared absolutely."""
    parameters = dict(model.named_parameters())
    noise = 1e-6 * max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        found = parameters[to_ours(name)].grad
        assert found is not None, name
        assert found.shape == gradient.shape
        assert bool(torch.isfinite(found).all()), name
        worst = (found - gradient).abs().max()
        assert worst <= max(tolerance * gradient.abs().max(), noise), name


@pytest.mark.parametrize("name", [*CASES, "grounding"])
def test_decoder_gives_the_originals_logits(name):
    case = inputs(name)
    with torch.no_grad():
        logits = logits_of(golden_ofa(), case)
    assert_near(logits, case["out.logits"], OUTPUT, case["written"] != 1)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_the_originals(name):
    model, case = golden_ofa(), inputs(name)
    loss = loss_of(logits_of(model, case), case)
    loss.loss.sum().backward()

    assert_loss(loss, case)
    gradients = part(case, "grad.")
    if gradients:
        assert_gradients(model, gradients, GRADIENT)


def test_every_parameter_has_a_golden_gradient():
    names = {to_ours(name) for name in part(golden("caption"), "grad.")}
    assert names == {name for name, _ in golden_ofa().named_parameters()}


def test_parameters_that_the_original_leaves_alone_have_no_gradient():
    model, case = golden_ofa(), inputs("caption")
    loss_of(logits_of(model, case), case).loss.sum().backward()
    known = {to_ours(name) for name in part(case, "grad.")}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is not None and gradient.any()} == known


def test_statistics_of_the_batch_are_trained_as_in_the_original():
    model, case = golden_ofa(freeze_stem_norms=False).train(), inputs("caption_train_mode")
    loss = loss_of(logits_of(model, case), case)
    loss.loss.sum().backward()

    assert_loss(loss, case)
    assert_gradients(model, part(case, "grad."), BATCH_STATISTICS)
    buffers, statistics = dict(model.named_buffers()), part(case, "stats.")
    assert len(statistics) == len(buffers) > 0
    for name, expected in statistics.items():
        assert_near(buffers[to_ours(name)], expected, OUTPUT)


@pytest.mark.parametrize("num_buckets", [8, 256])
def test_buckets_of_words_are_the_originals(num_buckets):
    expected = golden("buckets")[f"token_{num_buckets}"].int()  # by query - key + 1023
    buckets = sequence_buckets(1025, num_buckets, torch.device("cpu"))[0, 1:, 1:]
    assert torch.equal(buckets[:, 0], expected[1023:])
    assert torch.equal(buckets[0].flip(0), expected[:1024])


def test_buckets_of_patches_are_the_originals():
    rows = golden("buckets")["image_42_row_index"].long()
    whole = grid_buckets(42, 42, torch.device("cpu"), 42)[0]
    assert torch.equal(whole[rows], golden("buckets")["image_42_rows"].int())
    # A smaller grid has the same offsets as the corner of the square.
    places = torch.tensor([0, *(1 + row * 42 + column for row in range(3) for column in range(5))])
    assert torch.equal(grid_buckets(3, 5, torch.device("cpu"), 42)[0], whole[places[:, None], places])
