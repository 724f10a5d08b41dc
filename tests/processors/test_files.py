"""What holds for pictures and sounds alike, and how items are told apart."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import test_audio
import test_image_files
import torch
from PIL import Image
from test_audio import FORMATS, RATE

from onepeace.errors import UserError
from onepeace.processors import PROCESSORS, AudioProcessor, ImageProcessor, guess

EVERY = dict.fromkeys(("image", "audio", "text"))


def sound(index=0, rate=RATE, form="WAV", subtype="PCM_16"):
    return test_audio.encoded(test_audio.noise(30_000, index), rate, form, subtype)


def picture(index=0, form="PNG"):
    return test_image_files.encoded(Image.fromarray(test_image_files.noise(40, 50, seed=index)), form)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
@pytest.mark.parametrize(("key", "content"), [("image", picture()), ("audio", sound())])
def test_name_that_is_not_utf8_is_read(tmp_path, key, content):
    path = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(path, "wb") as file:
        file.write(content)
    assert torch.equal(PROCESSORS[key]().decode(Path(os.fsdecode(path))), PROCESSORS[key]().decode(content))


FILES = {
    "image": [picture(i, form) for i in range(6) for form in ("PNG", "JPEG")],
    "audio": [sound(i, rate) for i in range(3) for rate in (16000, 44100, 48000)],
}


@pytest.mark.parametrize("key", FILES)
def test_threads_get_the_same_numbers(key):
    processor = PROCESSORS[key]()
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(processor.decode, FILES[key] * 3))
    for item, sample in zip(FILES[key] * 3, together, strict=True):
        assert torch.equal(sample, processor.decode(item))


def test_samples_of_the_repository_are_read(samples):
    for folder, processor in {"images": ImageProcessor(), "sounds": AudioProcessor()}.items():
        paths = sorted((samples / folder).iterdir())
        assert paths
        for path in paths:
            sample = processor.decode(path)
            if folder == "images":
                assert sample.shape == (3, 256, 256)
                assert sample.std() > 0.1
            else:
                assert RATE <= len(sample) <= 15 * RATE
                assert sample.std() > 0.5


ITEMS = {
    "image": [
        *("a/b/DOG.JPG", Path("cat.webp"), "https://example.org/a%20cat.jpeg?size=3", picture()),
        *(test_image_files.png_header(60000, 60000), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint8)),
        *(torch.zeros(3, 4, 4), Image.new("L", (2, 2))),
    ],
    "audio": [
        *("a/b/DOG.WAV", Path("cat.mp3"), "https://example.org/a%20cat.ogg?size=3"),
        *(sound(0, RATE, *form) for form in FORMATS),
        *((test_audio.noise(100), RATE), {"array": test_audio.noise(100), "sampling_rate": RATE}),
        test_audio.BROKEN["m4a"][0],
    ],
    "text": ["a dog", "", "dog.", "note: a dog", "a picture of e.g. dogs", "data: none"],
}


@pytest.mark.parametrize("key", ITEMS)
def test_guess_tells_items_apart(key):
    for item in ITEMS[key]:
        assert guess(item, EVERY) == key, item


def test_guess_of_what_is_nothing():
    for item in (3, None, b"hello", "https://example.org/page", "data:image/png;base64,AAAA", np.zeros(9)):
        with pytest.raises(UserError, match="cannot tell"):
            guess(item, EVERY)
    with pytest.raises(UserError, match=r"dog\.jpg: looks like image; this model reads text, audio only"):
        guess("dog.jpg", {"text": None, "audio": None})


def test_guess_looks_into_a_file_without_ending(tmp_path):
    path = tmp_path / "file"
    for key, data in {"image": picture(), "audio": sound(0, RATE, "OGG", "VORBIS")}.items():
        path.write_bytes(data)
        assert guess(path, {key: None}) == key
    path.write_text("hello")
    with pytest.raises(UserError, match="file: cannot tell whether this is image or audio or text"):
        guess(path, {"image": None})


def test_guess_takes_the_ending_of_a_file_before_its_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("ID3 is how an MP3 file begins")
    assert guess(path, {"text": None, "audio": None}) == "text"
