"""Changed pictures, sounds and videos are copies of their original, and different ones are not."""

import io
from itertools import combinations

import numpy as np
import pytest
import soundfile
from PIL import Image

from onepeace.errors import UserError
from onepeace.index import copies


def encode(image, encoding, **options):
    file = io.BytesIO()
    image.save(file, encoding, **options)
    return file.getvalue()


def names_of_copies(same, original, looks):
    """Names of those that are copies of the original, whichever of the two comes first."""
    originals = [original] * len(looks)
    answers = same(originals, [*looks.values()])
    assert answers.tolist() == same([*looks.values()], originals).tolist()
    return {name for name, is_copy in zip(looks, answers, strict=True) if is_copy}


@pytest.fixture
def dog(samples):
    with Image.open(samples / "images" / "dog.jpg") as image:
        return image.convert("RGB")


@pytest.fixture
def same_dogs(dog):
    width, height = dog.size
    cut_at_right = dog.crop((0, 0, width - width // 20, height))
    return {
        "itself": dog,
        "half the size": dog.resize((width // 2, height // 2)),
        "cut at left and top": dog.crop((width // 20, height // 20, width, height)),
        "cut, and as large as before": cut_at_right.resize(dog.size),
        "brighter": Image.eval(dog, lambda level: min(255, round(1.2 * level))),
        "few colours": dog.quantize(64).convert("RGB"),
    }


@pytest.fixture
def other_dogs(dog):
    width, height = dog.size
    left = width // 2
    top = height // 2
    box = (left, top, left + width // 8, top + height // 8)
    marked = dog.copy()
    marked.paste((255, 255, 255), box)
    darkened = dog.copy()
    darker_part = Image.eval(dog.crop(box), lambda level: max(0, level - 24))
    darkened.paste(darker_part, box)
    return {
        "a mark in it": marked,
        "a faint mark in it": darkened,
        "mirrored": dog.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "negative": Image.eval(dog, lambda level: 255 - level),
    }


def test_edited_pictures_are_copies_or_others(samples, same_dogs, other_dogs):
    original = copies.picture(samples / "images" / "dog.jpg")
    looks = {}
    for name, image in {**same_dogs, **other_dogs}.items():
        looks[name] = copies.picture(encode(image, "JPEG", quality=60))

    assert names_of_copies(copies.same_pictures, original, looks) == same_dogs.keys()


def test_empty_pages_are_no_copies():
    page = Image.new("RGB", (90, 80), "white")
    white = copies.picture(encode(page, "PNG"))

    assert not copies.same_pictures([white], [white])[0]


@pytest.fixture
def look_at_sound(tmp_path):
    def look(samples, rate, name="sound.ogg"):
        soundfile.write(tmp_path / name, samples, rate)
        return copies.sound(tmp_path / name)

    return look


def with_other_phases(sound):
    """A sound of the same spectrum."""
    amplitudes = np.abs(np.fft.rfft(sound))
    phases = 2 * np.pi * np.random.default_rng(0).normal(size=len(amplitudes))
    return np.fft.irfft(amplitudes * np.exp(1j * phases), len(sound))


def test_changed_sounds(samples, look_at_sound):
    path = samples / "sounds" / "rain.ogg"
    sound, rate = soundfile.read(path)
    smoothed = np.convolve(sound, np.ones(4) / 4, "same")
    same = {
        "quieter": look_at_sound(0.1 * sound, rate),
        "cut at the start": look_at_sound(sound[rate // 4 :], rate),
        "half the rate": look_at_sound(smoothed[::2], rate // 2),
    }
    different = {
        "half of it": look_at_sound(sound[: len(sound) // 2], rate),
        "backwards": look_at_sound(sound[::-1], rate),
        "of the same spectrum": look_at_sound(with_other_phases(sound), rate),
        "higher notes twice as loud": look_at_sound(np.diff(sound, 2), rate),
    }

    names = names_of_copies(copies.same_sounds, copies.sound(path), {**same, **different})

    assert names == same.keys()


def test_silence_is_refused(look_at_sound):
    with pytest.raises(UserError, match="silence"):
        look_at_sound(np.zeros(8000), 8000, "silence.wav")


@pytest.mark.parametrize(
    ("seconds", "cut"),
    [
        (8.4, 0.4),
        (34, 2),
    ],
)  # also where fewer samples are a frame
def test_long_sounds_have_few_numbers(look_at_sound, seconds, cut):
    generator = np.random.default_rng(0)
    loudness = np.repeat(generator.uniform(0.01, 0.3, 60), round(seconds * 8000 / 60))
    sound = generator.normal(size=len(loudness)) * loudness
    whole = look_at_sound(sound, 8000, "whole.wav")
    shorter = look_at_sound(sound[round(cut * 8000) :], 8000, "shorter.wav")
    backwards = look_at_sound(sound[::-1], 8000, "backwards.wav")

    assert max(len(whole), len(shorter), len(backwards)) <= copies.FRAMES
    looks = {"shorter": shorter, "backwards": backwards}
    assert names_of_copies(copies.same_sounds, whole, looks) == {"shorter"}


@pytest.mark.parametrize(
    ("modality", "folder"),
    [
        ("image", "images"),
        ("audio", "sounds"),
    ],
)
def test_samples_are_no_copies_of_each_other(samples, modality, folder):
    look, same = copies.LOOKS[modality]
    looks = [look(path) for path in sorted((samples / folder).iterdir())]

    first, second = zip(*combinations(looks, 2), strict=True)

    assert not same(first, second).any()


@pytest.fixture
def look_at_video(samples, tmp_path):
    """Encodes a video of two seconds of each picture."""
    av = pytest.importorskip("av")

    def look(names, size, crf):
        path = tmp_path / "video.mp4"
        with av.open(path, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=5, options={"crf": crf})
            stream.width = stream.height = size
            for name in names:
                with Image.open(samples / "images" / f"{name}.jpg") as image:
                    frame = av.VideoFrame.from_image(image.convert("RGB").resize((size, size)))
                for _ in range(10):
                    container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return copies.video(path)

    return look


def test_scaled_video_is_a_copy(look_at_video):
    names = ["dog", "cat", "bus", "sea"]
    original = look_at_video(names, size=128, crf="20")
    looks = {
        "scaled": look_at_video(names, size=64, crf="30"),
        "different": look_at_video(["dog", "bird", "owl", "sea"], size=128, crf="20"),
    }

    assert names_of_copies(copies.same_videos, original, looks) == {"scaled"}
