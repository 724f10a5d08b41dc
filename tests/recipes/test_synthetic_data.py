"""The made pictures of recipes/ablation/synthetic.yaml: their patches share the pattern of the class, faintly."""

import io
import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from onepeace.data.shards import read_source

MADE = runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "ablation" / "synthetic_data.py"))


def patches(encoded):
    pixels = np.asarray(Image.open(io.BytesIO(encoded)), np.float64) / 127.5 - 1
    return pixels.reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, -1)


def test_a_patch_says_little_of_the_class_and_a_picture_much(tmp_path):
    rng = np.random.default_rng(0)
    classes, others = (rng.choice([-1.0, 1.0], (count, 8, 8, 3)) for count in (40, 400))
    MADE["write"](tmp_path, "some", 3, classes, others, 1)
    samples = read_source("some-*.tar", ("image", "text"), tmp_path)
    assert len({sample.label for sample in samples}) == 40 == len(samples) // 3
    assert samples[0].captions == [samples[0].label]
    signs = classes.reshape(40, -1)
    for number, sample in enumerate(samples[:40]):
        found = patches(sample.inputs["image"])
        similar = np.corrcoef(found.mean(0), signs[number])[0, 1]
        assert similar > 0.7
        assert np.abs([np.corrcoef(found.mean(0), other)[0, 1] for other in np.delete(signs, number, 0)]).max() < 0.4
        assert np.corrcoef(np.vstack([found, signs[number]]))[-1, :-1].mean() < 0.6  # a patch by itself
    assert np.abs(patches(MADE["picture"](np.zeros((8, 8, 3)), others, rng)).mean(0) @ signs[0]).max() / 192 < 0.2
