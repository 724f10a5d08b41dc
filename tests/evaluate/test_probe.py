"""Probes on frozen vectors: what they learn from, how C is chosen, and what they say of vectors without content."""

import numpy as np
import pytest
from support.evaluation import described
from support.small_shards import write_shard

from onepeace.evaluate.protocols.probe import STRENGTHS

linear_model = pytest.importorskip("sklearn.linear_model")

RECIPE = """
sets:
  words: {protocol: probe, modality: image, shards: "val/test.tar", train: {modality: image, shards: "val/train.tar"}}
"""


class NumberEmbedder:
    """The numbers in a file are its vector, a unit vector."""

    def encode_image(self, items):
        return np.loadtxt([item.decode() for item in items], ndmin=2)


def write_vectors(path, labels, noise, seed):
    """Vectors of two numbers: one direction for each of the classes a, b, c."""
    random = np.random.default_rng(seed)
    angles = {"a": 0.0, "b": 2.0, "c": 4.0}
    samples = {}
    for i, label in enumerate(labels):
        angle = angles[label] + noise * random.normal()
        vector = f"{np.cos(angle)} {np.sin(angle)}"
        samples[f"{i:03}"] = described(vector.encode(), label=label)
    write_shard(path, samples)


@pytest.fixture
def root(tmp_path):
    write_vectors(tmp_path / "val/train.tar", "abc" * 40, noise=0.3, seed=1)
    write_vectors(tmp_path / "val/test.tar", "abc" * 20, noise=0.7, seed=2)
    return tmp_path


def test_probe_learns_classes_that_can_be_told_apart(measured):
    (row,) = measured(embedder=NumberEmbedder())

    assert row[:2] == ("words", "linear probe top-1 of 3")
    assert row.n == len(row.per_query) == 60
    assert row.chance == pytest.approx(1 / 3)
    assert 0.6 < row.value == np.mean(row.per_query) < 1
    assert row.interval[0] < row.value < row.interval[1]


def test_strength_is_chosen_on_held_out_training_data(measured, monkeypatch):
    fits = []
    fit = linear_model.LogisticRegression.fit

    def spy(self, vectors, labels):
        fits.append((len(vectors), self.C))
        return fit(self, vectors, labels)

    monkeypatch.setattr(linear_model.LogisticRegression, "fit", spy)

    (row,) = measured(embedder=NumberEmbedder())

    *trials, (num_vectors, chosen) = fits
    assert trials == [(120 - 24, strength) for strength in STRENGTHS]  # without every fifth
    assert num_vectors == 120
    assert row.about["note"] == f"C = {chosen:g}"


def test_class_that_was_not_learned_is_a_miss(root, measured):
    write_vectors(root / "val/train.tar", "ab" * 40, noise=0.3, seed=1)

    (row,) = measured(embedder=NumberEmbedder())

    assert row.n == 60
    assert row.chance == pytest.approx(1 / 3)
    assert 0.4 < row.value < 0.7
    assert sum(row.per_query[2::3]) == 0
