"""Banks of unrelated queries: what they say of an index, kept and read again, and how a model's are made."""

from contextlib import closing

import numpy as np
import pytest
from support.indexes import fabricate

from onepeace.errors import UserError
from onepeace.index import Index, Item
from onepeace.index.banks import Banks
from onepeace.index.calibrate import FILE, KEPT, TEXTS, calibrate, least_alike, read_calibration, texts_of
from onepeace.index.store import Store


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def banks():
    rng = np.random.default_rng(0)
    return Banks({"word": unit(rng.normal(size=(20, 8))), "word/audio": unit(rng.normal(size=(9, 8)))}, "abc")


@pytest.fixture
def items():
    rows = unit(np.random.default_rng(1).normal(size=(50, 8)))
    return rows, ["image"] * 30 + ["audio"] * 20


def test_best_mean_and_squares_are_those_of_a_plain_product(banks, items):
    rows, kinds = items
    banks.add(rows, kinds)
    for kind, own, queries in (("image", rows[:30], "word"), ("audio", rows[30:], "word/audio")):
        cosines = banks.vectors[queries] @ own.T
        seen = banks.scores("word", kind)
        assert seen.best == pytest.approx(np.sort(cosines.max(axis=1)), abs=1e-6)
        assert seen.mean == pytest.approx(cosines.mean(), abs=1e-6)
        assert seen.deviation == pytest.approx(cosines.std(), abs=1e-6)
        assert seen.centre == pytest.approx(banks.vectors[queries].mean(axis=0), abs=1e-6)
    assert banks.scores("word", "text") is None
    assert banks.scores("image", "image") is None


def test_what_is_kept_goes_on_where_it_was(banks, items, monkeypatch):
    monkeypatch.setattr("onepeace.index.banks.BLOCK", 7)
    rows, kinds = items
    banks.add(rows[:35], kinds[:35])
    again = Banks.load(banks.to_bytes(), banks.best_bytes())
    again.add(rows[35:], kinds[35:])
    whole = Banks.load(banks.to_bytes())
    whole.add(rows, kinds)
    assert again.model == "abc"
    for kind in ("image", "audio"):
        for one, other in zip(again.scores("word", kind), whole.scores("word", kind), strict=True):
            assert one == pytest.approx(other, abs=2e-3)  # the vectors are kept in float16
    assert Banks.load(banks.to_bytes()).scores("word", "image") is None


def test_what_is_known_of_other_banks_is_forgotten(banks, items):
    banks.add(*items)
    other = Banks({"word": banks.vectors["word"][:5]}, "abc")
    assert Banks.load(other.to_bytes(), banks.best_bytes()).scores("word", "image") is None


def test_a_file_is_that_of_its_model_or_refused_by_name(banks, tmp_path):
    assert read_calibration(tmp_path, "abc") is None
    content = banks.to_bytes()
    (tmp_path / FILE).write_bytes(content)
    assert read_calibration(tmp_path, "abc") == content
    assert read_calibration(tmp_path, "another") is None
    earlier = content.replace(b'"format":"2"', b'"format":"1"')
    assert earlier != content
    for damaged in (content[:-1], content[:50], b"", earlier):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(UserError, match=FILE):
            read_calibration(tmp_path, "abc")


def test_texts_differ_and_are_of_their_length():
    for bank in TEXTS:
        texts = texts_of(bank)
        assert len(texts) == len(set(texts))
        assert all(text.strip() == text != "" for text in texts)
        words = [len(text.split()) for text in texts]
        assert max(words) <= 5 if bank.startswith("word") else min(words) > 3


def test_what_is_least_like_the_rest_is_kept():
    rows = unit(np.array([[1, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, 1]], float))
    assert least_alike(rows, 0.5).tolist() == rows[2:].tolist()
    assert len(least_alike(rows, 0.01)) == 1


def test_banks_of_a_model_are_its_texts_and_what_is_drawn_of_an_index(tmp_path, banks, monkeypatch):
    monkeypatch.setattr("onepeace.index.calibrate.DRAWN", 10)
    rows = np.random.default_rng(0).normal(size=(104, 8))
    folder = fabricate(tmp_path / "i", [(Item(f"/{n}.png", "image"), row) for n, row in enumerate(rows)])
    with closing(Store(folder, write=True)) as store, store.transaction():
        store.keep_blob("calibration", banks.to_bytes())
    with Index.open(folder) as index:
        found = calibrate(index)
        assert calibrate(index).vectors["image"].tolist() == found.vectors["image"].tolist()
    kept = found.vectors["image"]
    assert len(kept) == round(KEPT["image"] * 10)
    assert (unit(rows) @ kept.T).max(axis=0) == pytest.approx(np.ones(len(kept)), abs=1e-5)
    assert found.vectors.keys() == {"word", "word/audio", "image"}
    texts = fabricate(tmp_path / "texts", [(Item("/a.txt", "text"), rows[0])])
    with Index.open(texts) as index, pytest.raises(UserError, match="texts"):
        calibrate(index)
