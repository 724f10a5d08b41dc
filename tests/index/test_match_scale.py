"""The match beside unrelated queries: by hand, of kinds with a gap, of composed queries, and what is not known."""

import numpy as np
import pytest

from onepeace.index.banks import Banks
from onepeace.index.match import LIKELY, POSSIBLE, Scale, likelihood
from onepeace.index.query import EncodedPart, QueryVector

WIDTH = 32


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def around(seed, count, place):
    """Unit vectors (count, WIDTH) to one side of the sphere."""
    rows = np.random.default_rng(seed).normal(size=(count, WIDTH))
    rows[:, 0] = 0
    rows = unit(rows)
    rows[:, 0] = place
    return unit(rows)


@pytest.fixture(scope="module")
def banks():
    return Banks({"word": around(0, 300, 1.0), "word/audio": around(1, 100, 1.0), "image": around(2, 200, 0.8)}, "m")


@pytest.fixture(scope="module")
def folder():
    """400 pictures near to any text, 400 sounds far from it."""
    return np.concatenate([around(3, 400, 0.8), around(4, 400, -0.5)]), ["image"] * 400 + ["audio"] * 400


@pytest.fixture(scope="module")
def ranking(banks, folder):
    found = Banks(banks.vectors, banks.model)
    found.add(*folder)
    return found


def query(*parts):
    return QueryVector.of([EncodedPart(bank, vector, weight) for bank, vector, weight in parts])


def test_the_match_is_the_share_of_unrelated_queries_with_a_lower_best_hit():
    words = unit(np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], float))
    banks = Banks({"word": words})
    banks.add(unit(np.array([[1, 0, 0], [1, 0.2, 0]], float)), ["image", "image"])
    found = Scale(banks, query(("word", np.float32([0, 0, 1]), 1.0))).score("image", np.array([0.9, 0.5, -0.1]))[1]
    # the best scores are 1, 0.83, 0.14 and 0
    assert found.tolist() == [0.75, 0.5, 0.0]


def test_kinds_with_a_gap_are_put_on_one_scale(ranking, folder):
    """Raw, every picture is above every sound; z and the match find the sound that was meant."""
    vectors, kinds = folder
    sounds = np.array(kinds) == "audio"
    right = {"cosine": 0, "z": 0}
    for row in range(400, 450):
        meant = vectors[row].copy()
        meant[0] = 0.9
        asked = query(("word", unit(meant), 1.0))
        cosines = vectors @ asked.vector
        z, match = np.empty(800), np.empty(800)
        for kind, own in (("image", ~sounds), ("audio", sounds)):
            z[own], match[own] = Scale(ranking, asked).score(kind, cosines[own])
        right["cosine"] += np.argmax(cosines) == row
        right["z"] += np.argmax(z) == row
        assert match[row] > LIKELY
    assert right["cosine"] < 5
    assert right["z"] > 45


def test_words_for_sounds_are_judged_by_their_own_bank(banks, folder):
    asked = query(("word", around(9, 1, 1.0)[0], 1.0))
    sounds = folder[0][400:]
    best = np.sort((banks.vectors["word/audio"] @ sounds.T).max(axis=1))
    only_sounds = Banks(banks.vectors)
    only_sounds.add(sounds, ["audio"] * 400)
    assert Scale(only_sounds, asked).score("audio", best[[0, 50, 99]])[1] == pytest.approx([0, 0.5, 0.99], abs=0.011)


def test_an_unrelated_query_has_any_match_and_a_weight_changes_nothing(ranking, folder):
    pictures = folder[0][:400]
    found = []
    for vector in around(10, 300, 1.0):
        best = np.array([(pictures @ vector).max()])
        found.append(Scale(ranking, query(("word", vector, 1.0))).score("image", best)[1][0])
        again = Scale(ranking, query(("word", vector, 0.2))).score("image", best)[1][0]
        assert again == pytest.approx(found[-1], abs=0.01)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
    assert np.mean(np.array(found) > 0.9) == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize(
    "parts", [(("image", 1.0), ("word", 1.0)), (("word", 1.0), ("word", -0.5)), (("image", 0.7), ("word", 0.3))]
)
def test_unrelated_mixtures_have_any_match_and_related_ones_are_likely(banks, ranking, folder, parts):
    pictures, random = folder[0][:400], np.random.default_rng(0)
    unrelated = []
    for _ in range(200):
        drawn = [(bank, banks.vectors[bank][random.integers(len(banks.vectors[bank]))], w) for bank, w in parts]
        asked = query(*drawn)
        unrelated.append(Scale(ranking, asked).score("image", np.array([(pictures @ asked.vector).max()]))[1][0])
    # beside the bank of the heaviest part alone the means would be 0.82, 0.02 and 0.77
    assert np.mean(unrelated) == pytest.approx(0.5, abs=0.08)
    assert np.mean(np.array(unrelated) > LIKELY) < 0.1
    meant = [(bank, pictures[7], w) if w > 0 else (bank, around(11, 1, 1.0)[0], w) for bank, w in parts]
    asked = query(*meant)
    assert Scale(ranking, asked).score("image", pictures[7:8] @ asked.vector)[1][0] > LIKELY


def test_chance_hit_of_a_modality_that_is_rarely_first_is_no_likely_one(banks, folder):
    """Among four texts nearly any text is above what unrelated queries find."""
    scored = Banks(banks.vectors)
    scored.add(np.concatenate([folder[0][:400], around(13, 4, 0.8)]), ["image"] * 400 + ["text"] * 4)
    asked = query(("word", around(14, 1, 1.0)[0], 1.0))
    scale = Scale(scored, asked)
    best = scored.scores("word", "text").best
    nearer_than_nine_of_ten = np.array([np.quantile(best, 0.9)])
    z, match = scale.score("text", nearer_than_nine_of_ten)
    picture = scored.scores("word", "image")
    same_z = picture.mean + z * picture.deviation
    assert scale.score("image", same_z)[1][0] < 0.1
    assert match[0] < 0.3
    far_above = np.array([0.9])
    assert scale.score("text", far_above)[1][0] > LIKELY


def test_what_has_no_bank_has_no_match(ranking):
    cosines = np.array([0.3, 0.2])
    vector = around(12, 1, 1.0)[0]
    for asked, kind in (
        (query(("audio", vector, 1.0)), "image"),  # no bank of sounds
        (query(("word", vector, 1.0), ("audio", vector, 1.0)), "image"),
        (query(("word", vector, 1.0)), "text"),  # no texts in the folder
    ):
        found, match = Scale(ranking, asked).score(kind, cosines)
        assert match is None
        assert found.tolist() == cosines.tolist()
    assert Scale(Banks({}), query(("word", vector, 1.0))).score("image", cosines)[1] is None


def test_likelihood_in_words():
    assert [likelihood(m) for m in (1.0, LIKELY + 1e-6, LIKELY, POSSIBLE, POSSIBLE - 1e-6, 0.0)] == [
        "likely", "likely", "possible", "possible", "unlikely", "unlikely",
    ]  # fmt: skip
