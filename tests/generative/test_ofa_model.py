"""OFA as a module: its cache, what must not matter for a result, sizes, training modes, errors."""

import pytest
import torch
from support.golden_ofa import SIZES, golden, golden_ofa
from torch import nn

from onepeace.config.ofa import OFA_SIZES, OFAConfig
from onepeace.errors import UserError
from onepeace.layers.text_decoder import EncoderOutput, TextDecoder
from onepeace.ofa.model import OFA
from onepeace.ofa.stem import ResNetStem

PARAMETERS = {"tiny": 32_925_200, "medium": 91_765_728, "base": 180_383_720, "large": 469_842_432, "huge": 925_899_264}
"""Of the original's networks, less what pictures are written with: 4 D + 1,765 D and a table in each block."""


@pytest.fixture(scope="module")
def ofa():
    return golden_ofa()


@pytest.fixture
def encoded(ofa):
    """Three sources of different lengths."""
    case = golden("caption")
    with torch.no_grad():
        return ofa.encode(case["ids"], case["pixels"])


def near(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize(
    "size",
    [pytest.param(size, marks=pytest.mark.slow if size in ("large", "huge") else []) for size in sorted(PARAMETERS)],
)
def test_sizes_have_the_originals_parameters(size):
    with torch.device("meta"):
        model = OFA(OFAConfig(**OFA_SIZES[size]))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    assert not [name for name, tensor in model.state_dict().items() if not tensor.is_floating_point()]


@torch.no_grad()
def test_steps_give_the_logits_of_teacher_forcing(ofa, encoded):
    ids = torch.randint(4, 137, (3, 12))
    cache = ofa.decoder.start(encoded, 12)
    steps = torch.stack([ofa.decoder.step(ids[:, t], cache) for t in range(12)], dim=1)
    near(steps, ofa.decoder(ids, encoded))


@torch.no_grad()
def test_hypotheses_can_be_repeated_reordered_and_dropped(ofa, encoded):
    cache, sources, ids = ofa.decoder.start(encoded, 8), torch.arange(3), torch.empty(3, 0, dtype=torch.long)
    # First each source gets several, as in a beam; then any mixture, with sources that are done.
    for rows in ([2, 0, 0, 1, 1, 1], [5, 5, 0, 3], [1, 0, 3, 2, 2], [4, 0, 1], [0, 0], [1], [0]):
        newest = torch.randint(4, 137, (len(sources),))
        ids = torch.cat([ids, newest[:, None]], dim=1)
        wanted = ofa.decoder(ids, encoded.rows(sources))[:, -1]
        selected = cache.select(torch.arange(len(sources)).flip(0))
        near(ofa.decoder.step(newest, cache), wanted)
        near(ofa.decoder.step(newest.flip(0), selected).flip(0), wanted)  # the first step left it as it was
        cache = cache.select(torch.tensor(rows))
        sources, ids = sources[rows], ids[rows]


@torch.no_grad()
def test_keys_of_a_source_are_kept_once_for_all_its_hypotheses(ofa, encoded):
    cache = ofa.decoder.start(encoded, 4)
    ofa.decoder.step(torch.zeros(3, dtype=torch.long), cache)
    many = cache.select(torch.arange(3).repeat_interleave(5))
    assert [keys.data_ptr() for keys, _ in many.sources] == [keys.data_ptr() for keys, _ in cache.sources]
    assert all(part.is_contiguous() for pair in cache.sources for part in pair)  # else each step's product copies them
    assert [len(keys) for keys, _ in many.past] == [15, 15]
    done = many.select(torch.arange(5, 15))
    assert {len(keys) for keys, _ in done.sources} == {2}


@torch.no_grad()
def test_a_result_ignores_batch_mates_order_and_padding(ofa):
    case = golden("caption")
    ids, pixels, written = case["ids"], case["pixels"], case["written"]
    together = ofa(ids, written, pixels)
    near(ofa(ids.flip(0), written.flip(0), pixels.flip(0)).flip(0), together, 1e-6)
    for row in range(3):
        real, length = ids[row] != 1, int((written[row] != 1).sum())
        alone = ofa(ids[row : row + 1, real], written[row : row + 1, :length], pixels[row : row + 1])
        near(together[row : row + 1, :length], alone, 2e-6)
    longer = torch.nn.functional.pad(ids, (0, 7), value=1)
    near(ofa(longer, torch.nn.functional.pad(written, (0, 4), value=1), pixels)[:, : written.shape[1]], together, 2e-6)


@torch.no_grad()
def test_all_patches_in_another_order_are_the_same_picture(ofa):
    case = golden("caption")
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    near(ofa(case["ids"], case["written"], case["pixels"], keep=order),
         ofa(case["ids"], case["written"], case["pixels"]), 2e-6)  # fmt: skip


@torch.no_grad()
def test_a_picture_alone_is_read(ofa):
    pixels = golden("caption")["pixels"]
    assert ofa.encode(None, pixels).tokens.shape == (3, 16, 32)
    with pytest.raises(ValueError, match="needs ids, pixels or both"):
        ofa.encode(None)


def gradients(model, **options):
    case = golden("caption")
    model.zero_grad()
    logits = model(case["ids"], case["written"], case["pixels"])
    logits[case["written"] != 1].square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_activation_checkpointing_changes_no_gradient():
    model = golden_ofa().train()
    plain = gradients(model)
    model.set_grad_checkpointing()
    checkpointed = gradients(model)
    assert set(plain) == set(checkpointed)
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def test_training_leaves_statistics_alone_unless_told():
    for freeze in (True, False):
        model = golden_ofa(freeze_stem_norms=freeze).train()
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        grads = gradients(model)
        assert before
        assert all(torch.equal(buffer, before[name]) == freeze for name, buffer in model.named_buffers())
        assert grads["encoder.stem.bn1.weight"].any()


def test_dropout_and_drop_path_act_in_training_only():
    model, case = golden_ofa(dropout=0.2, drop_path=0.5), golden("caption")
    calm = model(case["ids"], case["written"], case["pixels"])
    assert torch.equal(calm, golden_ofa()(case["ids"], case["written"], case["pixels"]))
    assert [block.drop[1].rate for block in model.encoder.blocks] == [0, 0.25, 0.5]
    assert [block.drop[1].rate for block in model.decoder.blocks] == [0, 0.5]
    assert not torch.allclose(model.train()(case["ids"], case["written"], case["pixels"]), calm, atol=1e-3)


def test_new_weights_are_berts():
    model = OFA(OFAConfig(**SIZES))
    assert {round(gain, 6) for block in model.decoder.blocks for gain in block.cross_attn.gain.tolist()} == {1.0}
    assert not model.decoder.token_embed.weight[1].any()
    for tensor in (model.encoder.pos.q.weight, model.encoder.patches.bias_tables[1], model.decoder.words.pos_embed,
                   model.encoder.type_embed, model.decoder.token_embed.weight):  # fmt: skip
        assert 0.015 < tensor.std() < 0.025
    assert not model.encoder.blocks[0].ffn.up.bias.any()
    conv = model.encoder.stem.layer3[0].conv3.weight
    assert conv.std().item() == pytest.approx((2 / conv.shape[0]) ** 0.5, rel=0.1)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())


def test_stem_is_torchvisions_network():
    depths = (2, 3, 2)
    from torchvision.models.resnet import Bottleneck, ResNet

    theirs = ResNet(Bottleneck, [*depths, 1]).eval()
    theirs.layer4 = theirs.avgpool = theirs.fc = nn.Identity()
    stem = ResNetStem(64, depths).eval()
    state = theirs.state_dict()
    for name in list(state):
        if name.endswith("running_mean"):
            state[name] = torch.randn_like(state[name])
    theirs.load_state_dict(state)
    stem.load_state_dict({name: tensor for name, tensor in state.items() if "num_batches" not in name}, strict=True)
    pixels = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        found = stem(pixels)
        assert found.shape == (1, 1024, 4, 5)
        assert torch.equal(found.flatten(1), theirs(pixels))


def test_a_decoder_writes_after_any_tokens():
    decoder = TextDecoder(32, 2, 4, 64, nn.Embedding(50, 32, padding_idx=1), num_positions=16, num_buckets=8)
    ids = torch.randint(4, 50, (2, 6))
    encoded = EncoderOutput(torch.randn(2, 9, 32), None, torch.randn(1, 9, 32))
    assert decoder(ids, encoded).shape == (2, 6, 50)


def test_inputs_too_large_for_the_positions_are_one_line(ofa, encoded):
    with pytest.raises(UserError, match="pictures of 129 x 64 pixels: this model reads up to 128 on a side"):
        ofa.encode(None, torch.zeros(1, 3, 129, 64))
    with pytest.raises(UserError, match="65 tokens are more than the 64 positions"):
        ofa.encode(torch.full((1, 65), 4))
    with pytest.raises(UserError, match="65 tokens are more than the 64 positions"):
        ofa.decoder.start(encoded, 65)


def test_impossible_sizes_are_one_line():
    with pytest.raises(UserError, match="dim 30 is not a multiple"):
        OFAConfig(**{**SIZES, "dim": 30})


@torch.no_grad()
def test_bfloat16_is_close(ofa):
    case = golden("caption")
    exact = ofa(case["ids"], case["written"], case["pixels"])
    with torch.autocast("cpu", torch.bfloat16):
        rough = ofa(case["ids"], case["written"], case["pixels"])
    half = golden_ofa().bfloat16()(case["ids"], case["written"], case["pixels"].bfloat16())
    real = case["written"] != 1
    for found in (rough, half):
        assert bool(torch.isfinite(found[real]).all())
        near(found[real].float(), exact[real], 0.1)
