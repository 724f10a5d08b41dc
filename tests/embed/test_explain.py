"""Maps whose best place is known: one patch that is what was asked for, four pictures or three sounds side by side."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.embedding import RATE, assert_same

import onepeace
from onepeace.embed.explain import Explanation
from onepeace.errors import UserError

PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.fixture(scope="module")
def placeless(random_folder):
    """The random model without positions of pictures: a patch is the same wherever it lies."""
    model = onepeace.load(random_folder, device="cpu", modalities=["text", "image"])
    with torch.no_grad():
        model.module.adapters["image"].pos_embed.weight.zero_()
        for table in model.module.adapters["image"].bias_tables:
            table.zero_()
    return model


@pytest.fixture(scope="module")
def patch():
    return np.random.default_rng(2).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def vector_of_patch(model, patch):
    """The vector of a picture that is this patch and nothing else."""
    pixels = torch.from_numpy(patch).permute(2, 0, 1).float() / 255
    processor = model.processors["image"]
    return model.module({"image": {"pixels": ((pixels - processor.mean) / processor.std)[None]}})["image"][0].detach()


@pytest.fixture
def own_size(monkeypatch):
    """Pictures are read in the model's size."""
    monkeypatch.setattr("onepeace.embed.explain.PATCHES", 1)


@pytest.mark.usefixtures("own_size")
@pytest.mark.parametrize("place", PLACES)
def test_a_patch_that_is_the_query_is_the_best_wherever_it_lies(placeless, patch, place):
    pixels = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    row, column = place
    pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = patch
    found = placeless.explain(pixels, vector_of_patch(placeless, patch))
    assert found.modality == "image"
    assert found.unit == "patch"
    assert found.values.shape == (2, 2)
    assert found.values[row, column].item() == pytest.approx(1, abs=1e-5)
    others = found.values.flatten().tolist()
    others.pop(2 * row + column)
    assert max(others) < 0.99
    x, y = found.peak
    assert (int(2 * y), int(2 * x)) == place
    assert found.positions.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_a_picture_of_few_patches_is_read_in_a_larger_size(placeless, patch):
    query = vector_of_patch(placeless, patch)
    pixels = np.tile(patch, (8, 8, 1))  # in eight times its size each patch of the model is this one
    found = placeless.explain(pixels, query)
    assert found.values.shape == (8, 8)
    assert_same(found.values, torch.ones(8, 8))
    assert_same(found.similarity, (placeless.encode([pixels]) @ query).item())
    assert placeless.processors["image"].height == 32


def test_the_bundled_model_points_at_each_of_four_pictures(tiny, samples):
    names = {
        "coffee": "a cup of coffee",
        "sunflower": "a sunflower",
        "clock": "a clock",
        "parrot": "a parrot",
    }
    mosaic = Image.new("RGB", (400, 400))
    for name, (row, column) in zip(names, PLACES, strict=True):
        picture = Image.open(samples / "images" / f"{name}.jpg").convert("RGB").resize((200, 200))
        mosaic.paste(picture, (200 * column, 200 * row))
    pointed = 0
    for phrase, place in zip(names.values(), PLACES, strict=True):
        found = tiny.explain(mosaic, phrase)
        quarters = found.values.unflatten(1, (2, -1)).unflatten(0, (2, -1)).mean((1, 3))
        assert divmod(int(quarters.argmax()), 2) == place, phrase
        x, y = found.peak
        pointed += (int(2 * y), int(2 * x)) == place
    assert pointed >= 3  # one patch of the coffee fits "a parrot" best


def test_the_bundled_model_points_at_each_of_three_sounds(tiny, samples):
    names = {"church_bells": "church bells ringing", "dog": "a dog barking", "rain": "rain falling"}
    processor = tiny.processors["audio"]
    clips = [processor.load(samples / "sounds" / f"{name}.ogg", seconds=5.0) for name in names]
    clips = [0.1 * clip[: 4 * RATE] / clip[: 4 * RATE].std() for clip in clips]
    for number, phrase in enumerate(names.values()):
        found = tiny.explain((torch.cat(clips), RATE), phrase)
        assert 4 * number < found.peak[0] < 4 * number + 4, phrase
        assert found.values.ndim == 1
        assert found.unit == "second"


def test_the_similarity_is_that_of_the_whole_item(model, pictures, sounds):
    for item in (pictures[0], sounds[0]):
        query = model.encode(["a dog"])
        found = model.explain(item, "a dog")
        assert_same(found.similarity, (model.encode([item]) @ query.T).item())
        same = model.explain(item, query[0])
        assert_same(same.values, found.values)
        assert_same(same.similarity, found.similarity)
        assert_same(model.explain(item, query[0].numpy()).values, found.values)


def test_many_tokens_are_encoded_in_parts(model, sounds, monkeypatch):
    whole = model.explain(sounds[8], "rain")
    assert len(whole.values) > 3
    monkeypatch.setattr("onepeace.embed.explain.TOKENS_AT_ONCE", 2)
    assert_same(model.explain(sounds[8], "rain").values, whole.values)


def test_a_long_sound_has_one_time_line(model, long_sound):
    samples, rate = long_sound
    found = model.explain(long_sound, "rain")
    starts, ends = found.positions.T
    assert len(found.values) == len(starts)
    assert (starts[1:] > starts[:-1]).all()
    assert (ends > starts).all()
    assert starts[0] == 0
    assert 4.8 < ends[-1] <= 5
    # windows of two seconds: what the second one holds does not depend on the first
    second = model.explain((samples[2 * rate : 4 * rate], rate), "rain")
    inside = (starts >= 2) & (starts < 4)
    assert_same(found.values[inside], second.values)
    assert found.similarity >= second.similarity


def test_a_short_sound_ends_where_it_ends(model):
    short = (np.random.default_rng(0).normal(0, 0.1, 4800).astype(np.float32), RATE)  # repeated up to half a second
    found = model.explain(short, "rain")
    inputs = model.inputs("audio", [model.processors["audio"].decode(short)])
    assert 0 < len(found.values) < int(model.module.adapters["audio"].token_lengths(inputs))
    assert found.positions[-1, 1] <= 0.3


def test_a_text_is_explained_by_its_characters(model):
    found = model.explain("a dog in the rain", "rain")
    assert found.unit == "character"
    assert found.values.shape == (len(found.positions),)
    assert int(found.positions.max()) == len("a dog in the rain")


def test_a_cut_picture_says_which_part_was_seen(placeless, monkeypatch):
    monkeypatch.setattr(placeless.processors["image"], "resize", "crop")
    wide = placeless.explain(np.zeros((30, 60, 3), np.uint8), "a dog")
    assert wide.area == (0.25, 0, 0.75, 1)
    assert 0.25 < wide.peak[0] < 0.75
    assert placeless.explain(np.zeros((80, 20, 3), np.uint8), "a dog").area == (0, 0.375, 1, 0.625)


def test_the_peak_leans_to_the_larger_neighbour():
    values = torch.zeros(3, 3)
    values[1] = torch.tensor([0.0, 1.0, 0.9])
    positions = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    x, y = Explanation("image", values, positions, "patch", 0.5).peak
    assert 0.5 < x < 0.8
    assert y == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("item", "query", "message"),
    [
        (
            {"image": "a.png", "text": "a dog"},
            "a dog",
            "one picture or sound is explained at a time, not image and text",
        ),
        ({"audio": "a.ogg"}, "a dog", "this model has no audio; it has text, image"),
        ({"image": "none.png"}, "a dog", "none.png"),
        ({"text": "rain"}, torch.ones(3), r"the query is \(1, 3\)"),
        ({"text": "rain"}, torch.zeros(16), "a vector of zeros"),
        ({"text": "rain"}, torch.full((16,), torch.nan), "of the query has numbers that are not finite"),
    ],
)
def test_mistakes_are_named(placeless, item, query, message):
    with pytest.raises(UserError, match=message):
        placeless.explain(item, query)
