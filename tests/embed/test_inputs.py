"""What may be given to the API, in which forms, and what is said about the rest."""

import inspect
import io
import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from support.embedding import assert_same
from torch.testing import assert_close

from onepeace.errors import UserError


def test_one_picture_in_every_form_gives_one_vector(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    path = tmp_path / "a.png"
    image.save(path)
    forms = [path, str(path), path.read_bytes(), image, pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    expected = model.encode_image([path]).expand(len(forms), -1)
    assert_same(model.encode_image(forms), expected)
    assert_same(model.encode(forms), expected)
    assert_same(model.encode([{"image": form} for form in forms]), expected)


def test_one_sound_in_every_form_gives_one_vector(model, tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 12000).astype(np.float32)
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    stereo = np.stack([samples, samples])
    forms = [
        *(path, str(path), path.read_bytes(), (samples, 16000), (torch.from_numpy(samples), 16000), (stereo, 16000)),
        {"array": samples, "sampling_rate": 16000},
        {"path": "x", "array": samples.astype(np.float64), "sampling_rate": 16000},
    ]
    expected = model.encode_audio([path]).expand(len(forms), -1)
    assert_same(model.encode_audio(forms), expected)
    assert_same(model.encode(forms), expected)
    assert_same(model.encode([{"audio": form} for form in forms]), expected)


def test_texts_come_as_strings_or_text_files(model, tmp_path):
    (tmp_path / "a.txt").write_text("a dog\n", encoding="utf-8-sig")
    forms = ["a dog", tmp_path / "a.txt", np.array(["a dog"])[0]]
    expected = model.encode_text(["a dog"]).expand(3, -1)
    assert_same(model.encode_text(forms), expected)
    assert_same(model.encode(forms), expected)
    assert_same(model.encode_text(np.array(["a dog", "a dog", "a dog"])), expected)


def test_a_string_is_a_path_by_its_ending_only(model, samples, monkeypatch):
    monkeypatch.chdir(samples / "images")
    dog = model.encode([Path("dog.jpg")])
    assert_same(model.encode(["dog.jpg"]), dog)
    assert_same(model.encode(["dog"]), model.encode_text(["dog"]))
    assert_same(model.encode([{"text": "dog.jpg"}]), model.encode_text(["dog.jpg"]))


def test_a_batch_of_pictures_as_one_array_is_a_list(model):
    batch = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert_same(model.encode_image(batch), model.encode_image(list(batch)))
    assert_same(model.encode_image(batch.permute(0, 2, 3, 1).numpy()), model.encode_image(list(batch)))


@pytest.mark.parametrize(
    ("method", "item"),
    [
        ("encode_text", "a dog"),
        ("encode_image", "dog.jpg"),
        ("encode_image", Image.new("RGB", (9, 9))),
        ("encode_image", np.zeros((9, 9, 3), np.uint8)),
        ("encode_audio", (np.zeros(16000, np.float32), np.int64(16000))),
        ("encode_audio", {"array": np.zeros(16000, np.float32), "sampling_rate": 16000}),
        ("encode", {"text": "a"}),
        ("encode", 7),
    ],
)
def test_one_item_in_place_of_a_list_is_an_error(model, method, item):
    with pytest.raises(UserError, match=r"items should be a list, not one \w+; put it in brackets"):
        getattr(model, method)(item)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"on_error": "ignore"}, "on_error"),
        ({"long": "mean"}, "long"),
        ({"windows": 2.0}, "windows"),
        ({"window": 2.0}, "window and hop need long='windows'"),
        ({"long": "windows", "hop": float("nan")}, "hop is nan"),
    ],
)
def test_wrong_options_are_errors_before_anything_is_read(model, options, message):
    def items():
        pytest.fail("an item was read")
        yield

    with pytest.raises(UserError, match=message):
        model.encode(items(), **options)


@pytest.mark.parametrize(
    ("method", "item", "message"),
    [
        ("encode_text", 7, "str"),
        ("encode_image", "nothing.jpg", r"nothing\.jpg: no such file"),
        ("encode_image", "file:///etc/passwd", "http or https"),
        ("encode_image", {"image": "dog.jpg"}, "dog.jpg: .*dictionary by modality; give it to `encode`"),
        ("encode", 3.5, "cannot tell"),
        ("encode", ["a", "b"], "item 0: .*list"),
        ("encode", {"img": "a.jpg"}, r"a\.jpg: a composed item has the keys .*image.*; not 'img'"),
    ],
)
def test_wrong_values_are_errors_of_one_line(model, method, item, message):
    with pytest.raises(UserError, match=message) as caught:
        getattr(model, method)([item])
    assert "\n" not in str(caught.value)


def test_silence_is_embedded_and_warned_about(model, caplog):
    with caplog.at_level(logging.WARNING, logger="onepeace"):
        vectors = model.encode_audio([(np.zeros(16000, np.float32), 16000)])
    assert vectors.isfinite().all()
    assert_close(vectors.norm(dim=1), torch.ones(1), atol=1e-6, rtol=0)
    assert "silence" in caplog.text
    sounds = [np.zeros(32000), np.full(32000, 0.25), np.r_[np.zeros(16000), np.sin(np.arange(16000))]]
    for options in ({}, {"long": "windows", "window": 0.5, "hop": 0.5}):
        found = model.stream([(sound.astype(np.float32), 16000) for sound in sounds], **options)
        assert [one.is_silent for one in found] == [True, True, False]


def test_open_files_are_read_from_their_beginning(model, tmp_path):
    image = tmp_path / "a.png"
    Image.effect_noise((30, 40), 90).save(image)
    sound = tmp_path / "a.wav"
    soundfile.write(sound, np.random.default_rng(0).uniform(-0.5, 0.5, 12000), 16000)
    expected = model.encode([image, sound])
    with open(image, "rb") as image_file, open(sound, "rb") as sound_file:
        image_file.read(9)
        assert_same(model.encode([image_file, sound_file]), expected)
        assert_same(model.encode([{"image": image_file}, {"audio": sound_file}]), expected)
        assert_same(model.encode_image([image_file] * 9), expected[:1].expand(9, -1))
    assert_same(model.encode_audio([io.BytesIO(sound.read_bytes())]), expected[1:])
    with open(image) as text_file, pytest.raises(UserError, match=r"opened for reading text.*'rb'"):
        model.encode_image([text_file])
    with open(image, "rb") as image_file, pytest.raises(UserError, match="put it in brackets"):
        model.encode_image(image_file)


def test_first_sound_that_is_cut_is_reported(model, caplog):
    long_sound = (np.random.default_rng(0).normal(0, 0.1, 5 * 16000).astype(np.float32), 16000)
    model.processors["audio"].report_cut = True
    with caplog.at_level(logging.WARNING, logger="onepeace"):
        model.encode_audio([long_sound, long_sound])
        model.encode_audio([long_sound], long="windows")
    messages = [record.message for record in caplog.records if "of 5 seconds" in record.message]
    assert len(messages) == 1


def test_help_lists_the_options(model):
    for function in (model.encode_text, model.encode_image, model.encode_audio, model.encode, model.classify):
        parameters = inspect.signature(function).parameters
        assert [*parameters][-6:] == ["long", "window", "hop", "batch_size", "progress", "on_error"]
        assert parameters["batch_size"].default == 32
