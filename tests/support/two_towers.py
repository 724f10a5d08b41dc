"""Vectors of a made-up model with a gap between its modalities, whose pairs are known."""

import numpy as np
from onepeace.index.fitting import Vectors

WIDTH = 32
OFFSETS = {"text": 0.0, "image": 0.8, "audio": -0.5}
"""How far the items of a modality lie along one direction; texts lie at 1 along it."""
NOISE = {"text": 0.15, "image": 0.45, "audio": 0.6}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def pairs(modality, count, seed):
    """Unit vectors (count, WIDTH) of texts and of what they mean, row by row."""
    rng = np.random.default_rng(seed)
    meanings = unit(rng.normal(size=(count, WIDTH)))
    sides = []
    for key in ("text", modality):
        rows = meanings + NOISE[key] * unit(rng.normal(size=(count, WIDTH)))
        rows[:, 0] += 1.0 if key == "text" else OFFSETS[key]
        sides.append(unit(rows).astype(np.float32))
    return sides


def labelled(count=400):
    """What a calibration is fitted on: pictures and sounds, each with a text."""
    parts = {key: pairs(key, count, seed) for seed, key in enumerate(("image", "audio"))}
    numbers = np.arange(count)
    return {
        "image": Vectors(parts["image"][1], numbers, numbers),
        "audio": Vectors(parts["audio"][1], numbers + count, numbers + count),
        "text": Vectors(
            np.concatenate([parts["image"][0], parts["audio"][0]]), np.arange(2 * count), np.arange(2 * count)
        ),
    }
