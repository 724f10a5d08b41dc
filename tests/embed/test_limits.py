"""What is too long, too short or of the wrong kind is named at the door; what has no limit works."""

import pytest
import torch
from support.small_models import ALL, WAVE, item, small_model

from onepeace.config import MaskedDecoderConfig

LONG = 20 * 16000


def test_too_long_names_limit():
    model = small_model("text")
    model({"text": {"ids": torch.full((1, 39), 5)}})
    with pytest.raises(ValueError, match="40 text tokens exceed this model's limit of 39; shorten the text"):
        model({"text": {"ids": torch.full((1, 40), 5)}})


def test_more_tokens_than_the_decoder_has_positions_names_both():
    model = small_model("audio", decoder=MaskedDecoderConfig(16, 1, 2, 24, {"audio": {"num_positions": 20}}))
    batch = {"audio": item("audio", 0)}
    keep = {"audio": torch.tensor([[0, 1, 2]])}
    with pytest.raises(ValueError, match=r"43 tokens \(CLS included\) exceed the 20 positions of this model"):
        model.reconstruct(model.stems(batch), keep)


@torch.no_grad()
@pytest.mark.parametrize("name", ["audio", "audio with mel stem"])
def test_a_long_sound(name):
    """Longer than any stored table: 1,000 frames of the wave stem at its released hop."""
    convs = [[4, 10, 5], *[[4, 3, 2]] * 4, *[[4, 2, 2]] * 2]
    wave = {"adapters": {"audio": {**WAVE, "convs": convs, "pos_depth": 1, "pos_groups": 4}}}
    other = {} if "mel" in name else wave
    model = small_model(name, dim=16, num_heads=2, depth=1, ffn_dim=16, decoder=None, **other)
    waveform = torch.randn(1, LONG)
    vector = model({"audio": {"waveform": waveform, "lengths": torch.tensor([LONG])}})["audio"]
    assert torch.allclose(vector.norm(), torch.ones(()))
    tokens = model.adapters["audio"].token_lengths({"lengths": torch.tensor([LONG])})
    assert int(tokens) == (250 if "mel" in name else 999)
    assert model.adapters["audio"].seconds_per_token * int(tokens) == pytest.approx(20, abs=0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["audio", "audio with mel stem"])
def test_shortest_sound(name):
    model = small_model(name)
    shortest = model.adapters["audio"].stem.receptive_field
    batch = {"waveform": torch.randn(1, shortest), "lengths": torch.tensor([shortest])}
    assert model.features({"audio": batch})["audio"].shape[1] == 2
    with pytest.raises(
        ValueError, match=f"lengths of {shortest - 1} to {shortest - 1} samples; .* at least {shortest}"
    ):
        model({"audio": {"waveform": batch["waveform"], "lengths": torch.tensor([shortest - 1])}})


WAVE_OF_TWO = {"waveform": torch.zeros(2, 2000), "lengths": torch.tensor([900, 3000])}
REFUSED = [
    ("audio", WAVE_OF_TWO, r"3000 samples; .* at most the waveform's 2000"),
    *(
        ("audio", {"waveform": torch.zeros(wave), "lengths": torch.full(lengths, 2000)}, r"\(B, N\) and \(B,\), not")
        for wave, lengths in [((2000,), (1,)), ((2, 1, 2000), (2,)), ((2, 2000), (3,)), ((2, 2000), (2, 1))]
    ),
    # Cast to halves with the rest of a batch, ids above 256 would silently be other words.
    *(
        ("text", {"ids": item("text", 0)["ids"].to(dtype)}, r"ids should be \(B, L\) int64, not \(1, 4\) torch.(fl|bf)")
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
    ),
]


@pytest.mark.parametrize(("key", "batch", "message"), REFUSED)
def test_wrong_inputs_are_named(key, batch, message):
    with pytest.raises(ValueError, match=message):
        small_model(key)({key: batch})


@torch.no_grad()
def test_int32_ids_are_the_same_ids():
    model = small_model("text")
    ids = item("text", 1)["ids"]
    assert torch.equal(model({"text": {"ids": ids.int()}})["text"], model({"text": {"ids": ids}})["text"])


def test_unknown_modality_names_the_known_ones():
    model = small_model("text", "image")
    for call in (model, model.features):
        with pytest.raises(ValueError, match="no modality 'sound'; the model has text, image"):
            call({"text": item("text", 0), "sound": item("audio", 0)})
        with pytest.raises(ValueError, match="the model has text, image"):
            call({})


@torch.no_grad()
def test_lengths_of_padded_ids_are_counted_where_left_out():
    """Padding would be attended to as if it were words."""
    model, ids = small_model("text"), torch.tensor([[5, 7, 2], [6, 2, 1]])
    given = model({"text": {"ids": ids, "lengths": torch.tensor([3, 2])}})["text"]
    assert torch.equal(model({"text": {"ids": ids}})["text"], given)


def test_missing_parts_are_named():
    model = small_model(*ALL, decoder=None, projections=("text",), logit_scale=False)
    with pytest.raises(ValueError, match=r"image has no projection .*: text"):
        model({"image": item("image", 0)})
    with pytest.raises(ValueError, match="no decoder"):
        model.reconstruct(model.stems({"text": item("text", 0)}), {"text": torch.tensor([[0]])})
    with pytest.raises(ValueError, match="no head"):
        model.predict({"text": item("text", 0)})
    assert model.logit_scale is None
    model.clamp_logit_scale()


def test_options_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match="no stem 'wavelet'; known: wave, mel"):
        small_model("audio", adapters={"audio": {"stem": "wavelet"}})
    with pytest.raises(TypeError, match="vocabulary"):
        small_model("text", adapters={"text": {"vocabulary": 9, "vocab_size": 9}})
