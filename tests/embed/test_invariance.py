"""What must not matter does not: padding, order, batch size and company never change an item."""

import pytest
import torch
from support.small_models import (
    ALL,
    VARIANTS,
    batch_of,
    every_other,
    item,
    small_model,
    together,
)
from torch.nn.functional import pad
from torch.testing import assert_close

from onepeace.model import encoder

ITEMS = range(6)
AUDIO_STEMS = ["audio", "audio with even kernel", "audio with mel stem"]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    """Key and model of each modality, and of each stem of it."""
    key, _ = VARIANTS[request.param]
    return key, small_model(request.param)


@pytest.fixture(scope="module")
def model():
    return small_model(*ALL)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def assert_same_vectors(actual, expected):
    """Unit vectors in float32; a sum in another order changes them by about 2e-7."""
    assert_close(actual, expected, atol=2e-6, rtol=0)


def assert_same_tokens(actual, expected):
    """Features up to 4 or so."""
    assert_close(actual, expected, atol=1e-5, rtol=0)


def batch_of_items(key, indices=ITEMS):
    return together(item(key, index) for index in indices)


def vectors_of(model, key, batch):
    return model({key: batch})[key]


def test_vector_ignores_batch_mates(variant):
    key, model = variant
    for first in ITEMS:
        indices = [(first + i) % 6 for i in range(4)]
        alone = vectors_of(model, key, item(key, first))
        company = vectors_of(model, key, batch_of_items(key, indices))
        assert_same_vectors(company[:1], alone)


def test_vectors_of_different_items_differ(variant):
    """The tests around this one would pass with a model that gives every item the same vector."""
    key, model = variant
    vectors = vectors_of(model, key, batch_of_items(key))

    distances = (vectors[:, None] - vectors).abs().amax(dim=2)
    assert distances[~torch.eye(6, dtype=bool)].min() > 2e-3
    assert_same_vectors(vectors.norm(dim=1), torch.ones(6))


def passes_of(model, batch, keep):
    """Features by modality of a joint pass, of one with a part of the tokens, and predictions of all tokens."""
    return model.features(batch), model.features(batch, keep), model.reconstruct(model.stems(batch), keep)


@pytest.mark.parametrize("device", ["cpu", "as on a GPU"])
@pytest.mark.parametrize("bias_per_block", [False, True])
def test_joint_and_masked_passes_ignore_batch_mates(monkeypatch, bias_per_block, device):
    if device != "cpu":
        monkeypatch.setattr(encoder, "FOLDED", ())
        monkeypatch.setattr(encoder, "SHORT", 0)
    model = small_model(*ALL, bias_per_block=bias_per_block)
    batch = batch_of(model, range(3))
    keep = every_other(model, batch)
    together = passes_of(model, batch, keep)

    for index in range(3):
        alone = {key: item(key, index) for key in ALL}
        kept_alone = {key: ids[index : index + 1, ids[index] >= 0] for key, ids in keep.items()}
        for actual, expected in zip(together, passes_of(model, alone, kept_alone), strict=True):
            for key, (tokens,) in expected.items():
                assert_same_tokens(actual[key][index, : len(tokens)], tokens)


@pytest.mark.parametrize("name", AUDIO_STEMS)
def test_samples_behind_the_end_are_not_heard(name):
    model = small_model(name)
    batch = batch_of_items("audio")
    expected = vectors_of(model, "audio", batch)

    noise = pad(batch["waveform"], (0, 999), value=1e3)  # longer than any clip needs
    for row, length in zip(noise, batch["lengths"].tolist(), strict=True):
        row[length:] = 1e3 * torch.randn(len(row) - length)

    batch["waveform"] = noise
    assert_same_vectors(vectors_of(model, "audio", batch), expected)


def test_more_padding_ids_change_nothing():
    model = small_model("text")
    batch = batch_of_items("text")
    expected = vectors_of(model, "text", batch)

    batch["ids"] = pad(batch["ids"], (0, 5), value=1)

    assert_same_vectors(vectors_of(model, "text", batch), expected)
