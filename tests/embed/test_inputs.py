"""The forms in which items may be given to the API, and the errors of others."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.embedding import assert_same, assert_unit_rows
from support.sounds import RATE, noise

from onepeace.errors import UserError


@pytest.fixture
def image_path(tmp_path, pictures):
    Image.fromarray(pictures[0]).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture
def sound_path(tmp_path, sounds):
    samples, rate = sounds[0]
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    return tmp_path / "a.wav"


@pytest.fixture
def assert_all_give(model):
    """Every form of an item gives its vector, alone, among items of all modalities and with its modality."""

    def check(modality, forms, expected):
        expected = expected.expand(len(forms), -1)
        encode = getattr(model, f"encode_{modality}")
        assert_same(encode(forms), expected)
        assert_same(model.encode(forms), expected)
        assert_same(model.encode([{modality: form} for form in forms]), expected)

    return check


def test_picture_in_every_form(model, image_path, assert_all_give):
    forms = [str(image_path), image_path.read_bytes(), Image.open(image_path)]
    assert_all_give("image", forms, model.encode_image([image_path]))


def test_sound_in_every_form(model, sound_path, sounds, assert_all_give):
    samples, rate = sounds[0]
    forms = [str(sound_path), sound_path.read_bytes(), sounds[0], {"array": samples, "sampling_rate": rate}]
    assert_all_give("audio", forms, model.encode_audio([sound_path]))


def test_text_in_every_form(model, tmp_path, assert_all_give):
    path = tmp_path / "a.txt"
    path.write_text("a dog\n", encoding="utf-8-sig")
    texts = np.array(["a dog", "a dog"])

    assert_all_give("text", ["a dog", path, texts[0]], model.encode_text(["a dog"]))
    assert_same(model.encode_text(texts), model.encode_text(["a dog", "a dog"]))


def test_string_is_a_path_by_its_ending_only(model, samples, monkeypatch):
    monkeypatch.chdir(samples / "images")

    assert_same(model.encode(["dog.jpg"]), model.encode([Path("dog.jpg")]))
    assert_same(model.encode(["dog"]), model.encode_text(["dog"]))
    assert_same(model.encode([{"text": "dog.jpg"}]), model.encode_text(["dog.jpg"]))


def test_array_of_pictures_is_a_list(model):
    batch = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    channels_last = batch.permute(0, 2, 3, 1).numpy()
    expected = model.encode_image(list(batch))

    assert_same(model.encode_image(batch), expected)
    assert_same(model.encode_image(channels_last), expected)


@pytest.fixture
def image_file(image_path):
    with open(image_path, "rb") as file:
        yield file


def test_open_files_are_read_from_their_beginning(model, image_path, image_file, sound_path):
    sound_file = io.BytesIO(sound_path.read_bytes())
    expected = model.encode([image_path, sound_path])
    image_file.read(9)
    sound_file.read(9)

    assert_same(model.encode([image_file, sound_file]), expected)
    assert_same(model.encode([{"image": image_file}, {"audio": sound_file}]), expected)
    for vector in model.encode_image([image_file] * 9):
        assert_same(vector, expected[0])


SILENCE = np.zeros(RATE, np.float32)


@pytest.mark.parametrize(
    ("method", "item"),
    [
        ("encode_text", "a dog"),
        ("encode_image", "dog.jpg"),
        ("encode_image", np.zeros((9, 9, 3), np.uint8)),
        ("encode_audio", (SILENCE, np.int64(RATE))),
        ("encode", {"text": "a"}),
        ("encode", 7),
    ],
)
def test_one_item_in_place_of_a_list_is_an_error(model, method, item):
    with pytest.raises(UserError, match="brackets"):
        getattr(model, method)(item)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"on_error": "ignore"}, "on_error"),
        ({"long": "mean"}, "long"),
        ({"window": 2.0}, "long='windows'"),
    ],
)
def test_wrong_options_are_errors_before_anything_is_read(model, options, words):
    def items():
        pytest.fail("an item was read")
        yield

    with pytest.raises(UserError, match=words):
        model.encode(items(), **options)


@pytest.mark.parametrize(
    ("method", "item", "words"),
    [
        ("encode_text", 7, "str"),
        ("encode_image", "nothing.jpg", r"nothing\.jpg"),
        ("encode_image", {"image": "dog.jpg"}, r"dog\.jpg: .*`encode`"),
        ("encode", 3.5, "cannot tell"),
        ("encode", ["a", "b"], r"item 0: .*list"),
        ("encode", {"img": "a.jpg"}, r"a\.jpg: .*image.*'img'"),
        ("encode", {"text": "a", "smell": "b"}, "'smell'"),
        ("encode", {}, "cannot tell"),
        ("encode", {"image": "nothing.jpg", "text": "a"}, r"item 0: nothing\.jpg"),
    ],
)
def test_wrong_values_are_errors_of_one_line(model, method, item, words):
    with pytest.raises(UserError, match=words) as error:
        getattr(model, method)([item])
    assert "\n" not in str(error.value)


def test_silence_is_embedded_with_a_warning(model, caplog):
    with caplog.at_level(logging.WARNING, logger="onepeace"):
        vectors = model.encode_audio([(SILENCE, RATE)])

    assert_unit_rows(vectors, 1)
    assert "silence" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"long": "windows", "window": 0.5, "hop": 0.5},
    ],
)
@pytest.mark.parametrize(
    ("samples", "is_silent"),
    [
        (SILENCE, True),
        (SILENCE + 0.25, True),
        (np.append(SILENCE, noise(RATE)), False),
        (np.append(noise(RATE), SILENCE), False),
    ],
)
def test_silence_is_one_value_from_beginning_to_end(model, samples, is_silent, options):
    (result,) = model.stream([(samples, RATE)], **options)
    assert result.is_silent == is_silent


def test_first_sound_that_is_cut_is_reported(model, long_sound, caplog, monkeypatch):
    monkeypatch.setattr(model.processors["audio"], "report_cut", True)

    with caplog.at_level(logging.WARNING, logger="onepeace"):
        model.encode_audio([long_sound], long="windows")
        assert caplog.records == []
        model.encode_audio([long_sound, long_sound])

    (record,) = caplog.records
    assert "of 5 seconds" in record.message
