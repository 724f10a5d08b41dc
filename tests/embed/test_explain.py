"""Maps whose best place is known: one patch that is the query, four pictures or three sounds side by side."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.embedding import assert_same
from support.images import noise_pixels
from support.sounds import RATE, noise
from torch.nn.functional import adaptive_avg_pool2d

import onepeace
from onepeace.errors import UserError

QUARTERS = [(0, 0), (0, 1), (1, 0), (1, 1)]
"""Row and column of each quarter of a picture."""


@pytest.fixture(scope="module")
def unpositioned(random_folder):
    """The random model without positions of pictures: a patch is the same wherever it lies."""
    model = onepeace.load(random_folder, device="cpu", modalities=["text", "image"])
    adapter = model.module.adapters["image"]
    with torch.no_grad():
        for table in (adapter.pos_embed.weight, *adapter.bias_tables):
            table.zero_()
    return model


@pytest.fixture(scope="module")
def patch():
    return noise_pixels(16, 16)


@pytest.fixture(scope="module")
def patch_vector(unpositioned, patch):
    """The vector of a picture that is this patch and nothing else."""
    processor = unpositioned.processors["image"]
    pixels = torch.from_numpy(patch).permute(2, 0, 1) / 255
    pixels = (pixels - processor.mean) / processor.std
    with torch.no_grad():
        vectors = unpositioned.module({"image": {"pixels": pixels[None]}})
    return vectors["image"][0]


def quarter_of_peak(explanation):
    x, y = explanation.peak
    return (int(2 * y), int(2 * x))


@pytest.mark.parametrize("quarter", QUARTERS)
def test_patch_that_is_the_query_is_the_peak(unpositioned, patch, patch_vector, quarter, monkeypatch):
    monkeypatch.setattr("onepeace.embed.explain.PATCHES", 1)  # the model's size is large enough
    row, column = quarter
    pixels = noise_pixels(32, 32, seed=1)
    by_quarter = pixels.reshape(2, 16, 2, 16, 3)
    by_quarter[row, :, column] = patch

    explanation = unpositioned.explain(pixels, patch_vector)

    assert explanation.modality == "image"
    assert explanation.unit == "patch"
    assert explanation.values.shape == (2, 2)
    *_, second, best = sorted(explanation.values.flatten().tolist())
    assert explanation.values[row, column] == best
    assert best == pytest.approx(1, abs=1e-5)
    assert second < 0.99
    assert quarter_of_peak(explanation) == quarter
    assert list(map(tuple, explanation.positions.tolist())) == QUARTERS


def test_picture_of_few_patches_is_enlarged(unpositioned, patch, patch_vector):
    pixels = np.tile(patch, (8, 8, 1))  # in eight times its size each patch of the model is this one

    explanation = unpositioned.explain(pixels, patch_vector)

    assert_same(explanation.values, torch.ones(8, 8))
    (vector,) = unpositioned.encode([pixels])
    assert_same(explanation.similarity, vector @ patch_vector)
    assert unpositioned.processors["image"].height == 32


def test_bundled_model_finds_each_of_four_pictures(tiny, samples):
    phrases = {
        "coffee": "a cup of coffee",
        "sunflower": "a sunflower",
        "clock": "a clock",
        "parrot": "a parrot",
    }
    mosaic = Image.new("RGB", (400, 400))
    for name, (row, column) in zip(phrases, QUARTERS, strict=True):
        picture = Image.open(samples / "images" / f"{name}.jpg").convert("RGB")
        quarter = picture.resize((200, 200))
        mosaic.paste(quarter, (200 * column, 200 * row))

    num_peaks = 0
    for phrase, quarter in zip(phrases.values(), QUARTERS, strict=True):
        explanation = tiny.explain(mosaic, phrase)
        means = adaptive_avg_pool2d(explanation.values[None], 2)
        assert QUARTERS[means.argmax()] == quarter, phrase
        num_peaks += quarter_of_peak(explanation) == quarter
    assert num_peaks >= 3  # one patch of the coffee fits "a parrot" best


def test_query_may_be_a_vector(model, sounds):
    (vector,) = model.encode(["a dog"])
    expected = model.explain(sounds[0], "a dog")

    explanation = model.explain(sounds[0], vector.numpy())

    assert_same(explanation.values, expected.values)
    assert_same(explanation.similarity, expected.similarity)


def test_many_tokens_are_encoded_in_parts(model, sounds, monkeypatch):
    whole = model.explain(sounds[8], "rain")
    assert len(whole.values) > 3

    monkeypatch.setattr("onepeace.embed.explain.TOKENS_AT_ONCE", 2)

    assert_same(model.explain(sounds[8], "rain").values, whole.values)


def test_windows_of_a_long_sound_are_independent(model, long_sound):
    """A window of this model has two seconds; the query is the vector of the second one."""
    samples, rate = long_sound
    second_window = (samples[2 * rate : 4 * rate], rate)
    (query,) = model.encode_audio([second_window])

    explanation = model.explain(long_sound, query)

    starts = explanation.positions[:, 0]
    is_in_second = (starts >= 2) & (starts < 4)
    assert_same(explanation.values[is_in_second], model.explain(second_window, query).values)
    assert_same(explanation.similarity, 1.0)


def test_map_of_a_short_sound_ends_with_it(model):
    """Such a sound is repeated up to half a second."""
    sound = (noise(round(0.3 * RATE)), RATE)
    explanation = model.explain(sound, "rain")

    features = model.features({"audio": sound})["audio"].features
    assert 0 < len(explanation.values) < len(features)
    assert explanation.positions[-1, 1] <= 0.3


@pytest.mark.parametrize(
    ("height", "width", "area"),
    [
        (30, 60, (0.25, 0, 0.75, 1)),
        (80, 20, (0, 0.375, 1, 0.625)),
    ],
)
def test_area_of_a_cropped_picture(unpositioned, monkeypatch, height, width, area):
    monkeypatch.setattr(unpositioned.processors["image"], "resize", "crop")

    picture = Image.new("RGB", (width, height))

    explanation = unpositioned.explain(picture, "a dog")

    x0, y0, x1, y1 = explanation.area
    x, y = explanation.peak
    assert explanation.area == area
    assert x0 < x < x1
    assert y0 < y < y1


@pytest.mark.parametrize(
    ("item", "query", "words"),
    [
        ({"image": "a.png", "text": "a dog"}, "a dog", "image and text"),
        ({"audio": "a.ogg"}, "a dog", "no audio; it has text, image"),
        ({"text": "rain"}, torch.ones(3), r"query .*\(1, 3\)"),
        ({"text": "rain"}, torch.zeros(16), "zeros"),
    ],
)
def test_mistakes_are_named(unpositioned, item, query, words):
    with pytest.raises(UserError, match=words):
        unpositioned.explain(item, query)
