"""Banks of unrelated queries: what they say of an index, kept and read again, and how a model's are made."""

from contextlib import closing

import numpy as np
import pytest
from support.indexes import fabricate, modality_of, unit

from onepeace.errors import UserError
from onepeace.index import Index, Item
from onepeace.index.database import Store
from onepeace.index.match import (
    CALIBRATION,
    KEPT,
    Banks,
    calibrate,
    calibration_by_words,
    read_calibration,
)

MODALITIES = ["image"] * 30 + ["audio"] * 20


@pytest.fixture
def banks():
    rng = np.random.default_rng(0)
    return Banks(
        {
            "word": unit(rng.normal(size=(20, 8))),
            "word/audio": unit(rng.normal(size=(9, 8))),
        },
        "abc",
    )


@pytest.fixture
def vectors():
    return unit(np.random.default_rng(1).normal(size=(50, 8)))


@pytest.mark.parametrize(
    ("modality", "rows", "bank"),
    [
        ("image", slice(0, 30), "word"),
        ("audio", slice(30, 50), "word/audio"),
    ],
)
def test_scores_are_those_of_a_plain_product(banks, vectors, modality, rows, bank):
    banks.add(vectors, MODALITIES)
    cosines = banks.vectors[bank] @ vectors[rows].T

    scores = banks.scores("word", modality)

    best = np.sort(cosines.max(axis=1))
    assert scores.best == pytest.approx(best, abs=1e-6)
    assert scores.mean == pytest.approx(cosines.mean(), abs=1e-6)
    assert scores.deviation == pytest.approx(cosines.std(), abs=1e-6)
    assert scores.centre == pytest.approx(banks.vectors[bank].mean(axis=0), abs=1e-6)


def test_scores_go_on_after_they_were_stored(banks, vectors, monkeypatch):
    monkeypatch.setattr("onepeace.index.match.BLOCK", 7)
    banks.add(vectors[:35], MODALITIES[:35])
    whole = Banks.load(banks.to_bytes())
    whole.add(vectors, MODALITIES)

    stored = Banks.load(banks.to_bytes(), banks.scores_to_bytes())
    stored.add(vectors[35:], MODALITIES[35:])

    assert stored.model == "abc"
    for modality in ("image", "audio"):
        scores = stored.scores("word", modality)
        for value, expected in zip(scores, whole.scores("word", modality), strict=True):
            assert value == pytest.approx(expected, abs=2e-3)  # the vectors are kept in float16


@pytest.fixture(scope="module")
def damages():
    """Numbers of a cut and of sixty flipped bits, from 0 to 1."""
    return np.random.default_rng(0).random(60)


def flipped(content, part):
    """The content with one bit flipped."""
    damaged = bytearray(content)
    damaged[int(part * len(content))] ^= 1 << int(part * 1e6) % 8
    return bytes(damaged)


def test_calibration_file_is_that_of_its_model_and_intact(banks, tmp_path, damages):
    content = banks.to_bytes()
    assert read_calibration(tmp_path, "abc") is None
    (tmp_path / CALIBRATION).write_bytes(content)
    assert read_calibration(tmp_path, "abc") == content
    assert read_calibration(tmp_path, "another") is None
    cut = [content[:-1], content[:50], b""]
    earlier = content.replace(b'"format":"3"', b'"format":"2"')
    for damaged in (earlier, *cut, *(flipped(content, part) for part in damages)):
        assert damaged != content
        (tmp_path / CALIBRATION).write_bytes(damaged)

        with pytest.raises(UserError, match=CALIBRATION):
            read_calibration(tmp_path, "abc")


def test_damaged_words_in_the_cache_are_encoded_again(monkeypatch, tmp_path, model):
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path))
    content = calibration_by_words(lambda: model, "abc")
    (path,) = (tmp_path / "banks").iterdir()
    path.write_bytes(flipped(content, 0.9))

    again = calibration_by_words(lambda: model, "abc")

    assert path.read_bytes() == again == calibration_by_words(pytest.fail, "abc")
    for name, vectors in Banks.load(content).vectors.items():
        np.testing.assert_allclose(Banks.load(again).vectors[name], vectors, atol=1e-3)


def test_calibrate_draws_pictures_of_an_index(tmp_path, banks, monkeypatch):
    monkeypatch.setattr("onepeace.index.match.DRAWN", 10)
    monkeypatch.setattr("onepeace.index.match.FEWEST", 104)
    vectors = unit(np.random.default_rng(0).normal(size=(104, 8)))
    members = [(Item(f"/{number}.png", "image"), vector) for number, vector in enumerate(vectors)]
    folder = fabricate(tmp_path / "index", members)
    with closing(Store(folder, write=True)) as store, store.transaction():
        store.keep_blob("calibration", banks.to_bytes())

    with Index.open(folder) as index:
        calibrated = calibrate(index).vectors
        again = calibrate(index).vectors

    assert calibrated.keys() == {"word", "word/audio", "image"}
    assert len(calibrated["image"]) == round(KEPT["image"] * 10)
    cosines = vectors @ calibrated["image"].T
    assert cosines.max(axis=0) == pytest.approx(1, abs=1e-5)
    assert again["image"].tolist() == calibrated["image"].tolist()


@pytest.mark.parametrize("name", ["a.txt", "a.png"])
def test_calibrate_needs_generic_pictures_or_sounds(tmp_path, name):
    folder = fabricate(tmp_path / "index", [(Item(f"/{name}", modality_of(name)), [1, 0])])

    with Index.open(folder) as index, pytest.raises(UserError, match="100"):
        calibrate(index)
