"""Shards of coloured squares and of tones, each with a sentence and a class name, which a small model soon learns."""

import io
import json
import tarfile

import numpy as np
from support.images import encoded_image as png
from support.sounds import RATE, encoded_sound

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 50, 220),
    "yellow": (220, 210, 30),
    "white": (240, 240, 240),
    "black": (15, 15, 15),
    "purple": (150, 30, 180),
    "orange": (240, 140, 20),
}
TONES = {
    "low": 150.0,
    "deep": 300.0,
    "middle": 600.0,
    "high": 1200.0,
    "shrill": 2400.0,
    "piercing": 4800.0,
}


def square(colour, rng):
    pixels = np.array(colour) + rng.normal(0, 25, (24, 24, 3))
    return png(np.clip(pixels, 0, 255).astype(np.uint8))


def sine(frequency, count, phase=0.0):
    """So many samples of a tone."""
    time = np.arange(count) / RATE
    return np.sin(2 * np.pi * frequency * time + phase)


def tone(frequency, rng):
    """Half a second of about that frequency."""
    count = RATE // 2
    frequency = frequency * rng.uniform(0.95, 1.05)
    wave = sine(frequency, count, phase=rng.uniform(0, 6))
    return encoded_sound(0.3 * (wave + rng.normal(0, 0.1, count)))


def write_tar(path, members):
    """A tar of {member name: bytes} or such pairs, in order, compressed when its name ends with .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = members.items() if isinstance(members, dict) else members
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in pairs:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def write_shard(path, samples, suffix="png"):
    """A shard of {key: (encoded file, content of the .json)}."""
    members = {}
    for key, (media, content) in samples.items():
        members[f"{key}.{suffix}"] = media
        members[f"{key}.json"] = json.dumps(content).encode()
    return write_tar(path, members)


def write_classes(path, value_by_class, make, sentence, each, seed):
    """A shard of ``each`` items of every class, made of the class's value."""
    rng = np.random.default_rng(seed)
    samples = {}
    for number in range(each):
        for name, value in value_by_class.items():
            content = {"captions": [sentence.format(name)], "label": name}
            samples[f"{name}{number}"] = (make(value, rng), content)
    write_shard(path, samples, suffix="png" if make is square else "wav")


def write_shards(folder, squares=12, tones=8):
    """squares.tar and tones.tar in ``folder``, which is returned; so many of each colour and pitch."""
    write_classes(folder / "squares.tar", COLOURS, square, "a {} square", squares, seed=1)
    write_classes(folder / "tones.tar", TONES, tone, "a {} tone", tones, seed=2)
    return folder
