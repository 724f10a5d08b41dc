"""Shards of coloured squares and of tones, each with a sentence and a class name, which a small model soon learns."""

import io
import json
import tarfile

import numpy as np
import soundfile
from PIL import Image

COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "yellow": (220, 210, 30),
    "white": (240, 240, 240), "black": (15, 15, 15), "purple": (150, 30, 180), "orange": (240, 140, 20),
}  # fmt: skip
TONES = {"low": 150.0, "deep": 300.0, "middle": 600.0, "high": 1200.0, "shrill": 2400.0, "piercing": 4800.0}


def square(colour, rng):
    pixels = np.clip(np.array(colour) + rng.normal(0, 25, (24, 24, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tone(frequency, rng):
    time = np.arange(8000) / 16000
    wave = np.sin(2 * np.pi * frequency * rng.uniform(0.95, 1.05) * time + rng.uniform(0, 6)) + rng.normal(0, 0.1, 8000)
    file = io.BytesIO()
    soundfile.write(file, 0.3 * wave, 16000, format="WAV")
    return file.getvalue()


def write_tar(path, members):
    """A tar of {member name: bytes} or such pairs, in order, compressed when its name ends with .gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def write_shard(path, samples, suffix="png"):
    """A shard of {key: (encoded file, what the .json says)}."""
    members = {}
    for key, (media, about) in samples.items():
        members |= {f"{key}.{suffix}": media, f"{key}.json": json.dumps(about).encode()}
    return write_tar(path, members)


def write(path, kinds, make, suffix, sentence, each, seed):
    rng = np.random.default_rng(seed)
    about = {name: {"captions": [sentence.format(name)], "label": name} for name in kinds}
    samples = {f"{name}{i}": (make(kinds[name], rng), about[name]) for i in range(each) for name in kinds}
    write_shard(path, samples, suffix)


def write_shards(folder, squares=12, tones=8):
    """squares.tar and tones.tar in ``folder``, which is returned; so many of each colour and pitch."""
    write(folder / "squares.tar", COLOURS, square, "png", "a {} square", squares, seed=1)
    write(folder / "tones.tar", TONES, tone, "wav", "a {} tone", tones, seed=2)
    return folder
