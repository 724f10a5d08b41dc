"""What is too long, too short or of the wrong form is named at the door; what has no limit works."""

import pytest
import torch
from support.small_models import item, small_model

TWENTY_SECONDS = 20 * 16000
AUDIO_STEMS = ["audio", "audio with mel stem"]


def text_of(num_tokens):
    return {"text": {"ids": torch.full((1, num_tokens), 5)}}


def waveform(*shape, lengths):
    return {"waveform": torch.zeros(shape), "lengths": torch.tensor(lengths)}


def test_text_beyond_the_limit_is_an_error():
    model = small_model("text")
    model(text_of(39))

    with pytest.raises(ValueError, match=r"40 text tokens .* 39"):
        model(text_of(40))


@torch.no_grad()
def test_sound_may_be_longer_than_any_stored_table():
    model = small_model("audio with mel stem", dim=16, depth=1, ffn_dim=16, decoder=None)
    adapter = model.adapters["audio"]
    batch = waveform(1, TWENTY_SECONDS, lengths=[TWENTY_SECONDS])

    vector = model({"audio": batch})["audio"]

    assert vector.norm().item() == pytest.approx(1, abs=1e-6)
    assert adapter.token_lengths(batch).tolist() == [250]
    assert adapter.seconds_per_token * 250 == pytest.approx(20, abs=0.1)


@torch.no_grad()
@pytest.mark.parametrize("name", AUDIO_STEMS)
def test_shortest_sound_has_one_token(name):
    model = small_model(name)
    shortest = model.adapters["audio"].stem.receptive_field

    batch = waveform(1, shortest, lengths=[shortest])
    features = model.features({"audio": batch})["audio"]

    assert features.shape[1] == 1 + 1  # CLS
    batch["lengths"] -= 1
    with pytest.raises(ValueError, match=f"{shortest - 1} samples; .* {shortest}"):
        model({"audio": batch})


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (waveform(2, 2000, lengths=[900, 3000]), "3000 samples; .* 2000"),
        (waveform(2000, lengths=[2000]), r"\(B, N\)"),
        (waveform(2, 2000, lengths=[[2000]] * 2), r"\(B,\)"),
    ],
)
def test_waveforms_of_wrong_shapes_are_refused(batch, words):
    with pytest.raises(ValueError, match=words):
        small_model("audio")({"audio": batch})


def test_ids_of_a_float_type_are_refused():
    """Cast to halves with the rest of a batch, ids above 256 would silently be other words."""
    ids = item("text", 0)["ids"]

    with pytest.raises(ValueError, match=r"int64, not .* torch\.float16"):
        small_model("text")({"text": {"ids": ids.half()}})


@torch.no_grad()
def test_lengths_of_padded_ids_are_counted_where_left_out():
    """Padding would be attended to as if it were words."""
    model = small_model("text")
    batch = {
        "ids": torch.tensor([[5, 7, 2], [6, 2, 1]]),
        "lengths": torch.tensor([3, 2]),
    }
    expected = model({"text": batch})

    del batch["lengths"]

    assert torch.equal(model({"text": batch})["text"], expected["text"])
