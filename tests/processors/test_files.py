"""What holds for pictures and sounds alike, and how items are told apart."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.broken_files import assert_refused
from support.images import encoded_image, noise_pixels, png_header
from support.sounds import FORMATS, RATE, encoded_sound, noise

from onepeace.errors import UserError
from onepeace.processors import PROCESSORS, guess

PICTURE = encoded_image(noise_pixels(40, 50))
WAV = encoded_sound(noise(30_000))


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("image", PICTURE),
        ("audio", WAV),
    ],
)
def test_name_that_is_not_utf8_is_read(tmp_path, key, content):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    path.write_bytes(content)
    processor = PROCESSORS[key]()

    assert torch.equal(processor.decode(path), processor.decode(content))


def pictures():
    return [encoded_image(noise_pixels(40, 50, seed=i), "JPEG") for i in range(12)]


def sounds():
    """Sounds whose rates are all resampled differently."""
    return [encoded_sound(noise(30_000, i), 16000 + 4000 * i) for i in range(9)]


@pytest.mark.parametrize(
    ("key", "make_files"),
    [
        ("image", pictures),
        ("audio", sounds),
    ],
)
def test_threads_get_the_same_numbers(key, make_files):
    processor = PROCESSORS[key]()
    files = make_files()
    expected = [processor.decode(file) for file in files]

    with ThreadPoolExecutor(6) as pool:
        samples = list(pool.map(processor.decode, files * 3))

    assert all(map(torch.equal, samples, expected * 3))


@pytest.mark.parametrize(
    ("key", "options", "words"),
    [
        ("image", {"size": 0}, "size is 0"),
        ("image", {"resize": "fit"}, "'squash', 'crop'"),
        ("image", {"std": [1, 1, 0]}, "std"),
        ("image", {"Size": 3}, r"processors\.image\.Size .*size"),
        ("audio", {"sample_rate": 0}, "sample_rate is 0"),
        ("audio", {"min_seconds": 3.0, "max_seconds": 2.0}, "in order"),
        ("audio", {"max_seconds": "x"}, r"^processors\.audio: "),
    ],
)
def test_wrong_setting_is_an_error(key, options, words):
    assert_refused(PROCESSORS[key].from_config, options, words)


# Guessing the modality


@pytest.mark.parametrize(
    "item",
    [
        "a/b/DOG.JPG",
        Path("cat.webp"),
        "https://example.org/a%20cat.jpeg?size=3",
        PICTURE,
        png_header(60000, 60000),
        np.zeros((4, 4, 3), np.uint8),
        torch.zeros(3, 4, 4),
        Image.new("L", (2, 2)),
    ],
)
def test_guess_of_pictures(item):
    assert guess(item, ["image", "audio", "text"]) == "image"


@pytest.mark.parametrize(
    "item",
    [
        "a/b/DOG.WAV",
        Path("cat.mp3"),
        "https://example.org/a%20cat.ogg?size=3",
        (noise(100), RATE),
        {"array": noise(100), "sampling_rate": RATE},
        b"\0\0\0\x20ftypM4A " + bytes(100),
    ],
    ids=str,
)
def test_guess_of_sounds(item):
    assert guess(item, ["image", "audio", "text"]) == "audio"


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_guess_of_every_format_of_sound(form, subtype):
    content = encoded_sound(noise(30_000), form=form, subtype=subtype)
    assert guess(content, ["image", "audio", "text"]) == "audio"


@pytest.mark.parametrize(
    "item",
    [
        "a dog",
        "",
        "dog.",
        "note: a dog",
    ],
)
def test_guess_of_texts(item):
    assert guess(item, ["image", "audio", "text"]) == "text"


@pytest.mark.parametrize(
    "item",
    [
        3,
        None,
        b"hello",
        "https://example.org/page",
        "https://example.org/a.txt",
        "data:image/png;base64,AAAA",
        np.zeros((4, 4, 3), np.float32),
    ],
    ids=str,
)
def test_guess_of_no_item_is_an_error(item):
    with pytest.raises(UserError, match="cannot tell"):
        guess(item, ["image", "audio", "text"])


def test_guess_names_what_the_model_reads():
    with pytest.raises(UserError, match=r"dog\.jpg: .*image.*text, audio only"):
        guess("dog.jpg", ["text", "audio"])


@pytest.mark.parametrize("name", ["file", "file.xyz"])
@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("image", PICTURE),
        ("audio", encoded_sound(noise(30_000), form="OGG", subtype="VORBIS")),
    ],
)
def test_guess_looks_into_a_file_without_a_known_ending(tmp_path, key, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    assert guess(path, [key]) == key

    path.write_text("hello")
    with pytest.raises(UserError, match=f"{name}: cannot tell"):
        guess(path, [key])


def test_guess_takes_the_ending_of_a_file_before_its_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ID3 is how an MP3 file begins")
    assert guess(path, ["text", "audio"]) == "text"
