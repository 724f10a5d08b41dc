"""Data for fine-tunings of a few steps, and settings for them."""

import csv

import numpy as np
from support.small_shards import COLOURS, TONES, square, tone

FOUR_COLOURS = ("red", "green", "blue", "white")
QUICK = ("schedule.steps=4", "optim.lr=3e-3", "run.precision=float32", "optim.layer_decay=null", "run.workers=0")
"""Settings for data so small that a step takes some milliseconds."""


def write_pictures(folder, count, colours=FOUR_COLOURS):
    """Writes red0.png, green0.png, ...: the same number of squares of each colour; returns their paths."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i in range(count):
        for colour in colours:
            path = folder / f"{colour}{i}.png"
            path.write_bytes(square(COLOURS[colour], rng))
            paths.append(path)
    return paths


def write_sounds(folder, count, names):
    """Writes a folder for each kind of tones with 0.wav, 1.wav, ..."""
    rng = np.random.default_rng(6)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / name / f"{i}.wav").write_bytes(tone(TONES[name], rng))


def write_table(path, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path
