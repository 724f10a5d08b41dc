"""Probes on frozen vectors: what they learn from, how C is chosen, and what they say of vectors without content."""

import importlib
from importlib.util import find_spec

import numpy as np
import pytest
from support.evaluation import measure, recipe_of
from support.small_shards import write_shard

from onepeace.errors import UserError
from onepeace.evaluate.protocols.probe import STRENGTHS, every_fifth

pytestmark = pytest.mark.skipif(find_spec("sklearn") is None, reason="needs scikit-learn")

RECIPE = """
sets:
  words: {protocol: probe, modality: image, shards: "val/test.tar", train: {modality: image, shards: "val/train.tar"}}
"""


class Content:
    """Numbers in a file are its vector."""

    def encode_image(self, items):
        rows = np.array([[float(number) for number in item.decode().split()] for item in items])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(path, labels, noise, seed):
    """Vectors of two numbers: one direction for each of the classes a, b, c."""
    random = np.random.default_rng(seed)
    angles = {"a": 0.0, "b": 2.0, "c": 4.0}
    samples = {}
    for i, label in enumerate(labels):
        angle = angles[label] + noise * random.normal()
        samples[f"{i:03}"] = (f"{np.cos(angle)} {np.sin(angle)}".encode(), {"label": label})
    write_shard(path, samples)


@pytest.fixture
def shards(tmp_path):
    write(tmp_path / "val/train.tar", "abc" * 40, 0.3, 1)
    write(tmp_path / "val/test.tar", "abc" * 20, 0.7, 2)
    return tmp_path


def test_a_probe_learns_classes_that_can_be_told_apart(shards):
    (row,) = measure(Content(), recipe_of(shards, RECIPE))
    assert row[:2] == ("words", "linear probe top-1 of 3")
    assert (row.n, row.chance, len(row.per_query)) == (60, pytest.approx(1 / 3), 60)
    assert 0.6 < row.value == np.mean(row.per_query) < 1
    assert row.interval[0] < row.value < row.interval[1]
    assert row.about["note"] in [f"C = {strength:g}" for strength in STRENGTHS]


def test_vectors_without_content_reach_chance_or_less(shards):
    class Equal:
        def encode_image(self, items):
            return np.tile(np.float32([1, 0]), (len(items), 1))

    for row in measure(Equal(), recipe_of(shards, RECIPE)):
        assert row.value <= 1 / 3


def test_the_strength_is_chosen_on_held_out_training_data_alone(shards, monkeypatch):
    asked = []
    regression = importlib.import_module("sklearn.linear_model").LogisticRegression
    fit = regression.fit

    def spy(self, vectors, labels):
        asked.append((len(vectors), self.C))
        return fit(self, vectors, labels)

    monkeypatch.setattr(regression, "fit", spy)
    (row,) = measure(Content(), recipe_of(shards, RECIPE))
    # 40 of each class, less every fifth, and then all with the best
    assert asked[:-1] == [(120 - 24, strength) for strength in STRENGTHS]
    assert asked[-1][0] == 120
    assert row.about["note"] == f"C = {asked[-1][1]:g}"


def test_every_fifth_of_a_class_is_held_out():
    labels = np.array(list("a" * 10 + "b" * 5 + "c" * 4))
    rows = every_fifth(labels)
    assert sorted(labels[rows]) == ["a", "a", "b"]
    assert every_fifth(np.array(list("abc"))).tolist() == [0, 1, 2]


def test_one_class_is_too_few(shards):
    with pytest.raises(UserError, match="at least two classes"):
        measure(Content(), recipe_of(shards, RECIPE, "sets.words.train.keys='000'"))


def test_a_label_that_was_not_learned_is_a_miss(shards):
    rows = measure(Content(), recipe_of(shards, RECIPE, "sets.words.train.keys='*[0134679]'"))
    assert all(row.n == 60 for row in rows)
    write(shards / "val/train.tar", "ab" * 40, 0.3, 1)
    for row in measure(Content(), recipe_of(shards, RECIPE)):
        assert 0.4 < row.value < 0.7
        assert sum(row.per_query[2::3]) == 0
