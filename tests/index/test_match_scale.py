"""The match beside unrelated queries: by hand, of modalities with a gap, of composed queries, and without a bank."""

import numpy as np
import pytest
from support.indexes import unit

from onepeace.index.match import LIKELY, POSSIBLE, WORDS, Banks, Scale, level
from onepeace.index.query import EncodedPart, QueryVector

WIDTH = 32
NUM_FILES = 400


def around(seed, count, centre):
    """Unit vectors (count, WIDTH) to one side of the sphere."""
    rows = np.random.default_rng(seed).normal(size=(count, WIDTH))
    rows[:, 0] = 0
    rows = unit(rows)
    rows[:, 0] = centre
    return unit(rows)


@pytest.fixture(scope="module")
def banks():
    vectors = {
        "word": around(0, 300, 1.0),
        "word/audio": around(1, 100, 1.0),
        "image": around(2, 200, 0.8),
    }
    return Banks(vectors, "m")


@pytest.fixture(scope="module")
def pictures():
    """Near to any text."""
    return around(3, NUM_FILES, 0.8)


@pytest.fixture(scope="module")
def sounds():
    """Far from any text."""
    return around(4, NUM_FILES, -0.5)


def scored(banks, **vectors):
    """The banks beside files of each modality."""
    scored_banks = Banks(banks.vectors, banks.model)
    for modality, rows in vectors.items():
        scored_banks.add(rows, [modality] * len(rows))
    return scored_banks


@pytest.fixture(scope="module")
def folder_banks(banks, pictures, sounds):
    return scored(banks, image=pictures, audio=sounds)


def query_of(*parts):
    return QueryVector.of([EncodedPart(*part) for part in parts])


def query_of_word(vector):
    return query_of(("word", vector, 1.0))


def test_match_is_the_share_of_unrelated_queries_with_a_lower_best_hit():
    banks = Banks({"word": unit([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]])})
    banks.add(unit([[1, 0, 0], [1, 0.2, 0]]), ["image", "image"])  # the best cosines are 1, 0.83, 0.14 and 0

    _, matches = Scale(banks, query_of_word(np.float32([0, 0, 1]))).score("image", np.array([0.9, 0.5, -0.1]))

    assert matches.tolist() == [0.75, 0.5, 0.0]


def test_scale_closes_the_gap_between_modalities(folder_banks, pictures, sounds):
    """By the cosine every picture is above every sound; z and the match find the sound that was meant."""
    num_first = {"cosine": 0, "z": 0}
    for number in range(50):
        meant = sounds[number].copy()
        meant[0] = 0.9
        query = query_of_word(unit(meant))
        scale = Scale(folder_banks, query)
        picture_z, _ = scale.score("image", pictures @ query.vector)
        sound_z, sound_matches = scale.score("audio", sounds @ query.vector)
        cosines = np.concatenate([sounds, pictures]) @ query.vector
        z = np.concatenate([sound_z, picture_z])
        num_first["cosine"] += np.argmax(cosines) == number
        num_first["z"] += np.argmax(z) == number
        assert sound_matches[number] > LIKELY

    assert num_first["cosine"] < 5
    assert num_first["z"] > 45


@pytest.mark.parametrize(
    "weights",
    [
        [("word", 1.0)],
        [("image", 1.0), ("word", 1.0)],
        [("word", 1.0), ("word", -0.5)],
        [("image", 0.7), ("word", 0.3)],
    ],
    ids=str,
)
def test_match_of_unrelated_queries_is_spread_evenly(banks, folder_banks, pictures, weights):
    random = np.random.default_rng(0)
    matches = []
    for _ in range(200):
        parts = [(bank, random.choice(banks.vectors[bank]), weight) for bank, weight in weights]
        query = query_of(*parts)
        _, (match,) = Scale(folder_banks, query).score("image", (pictures @ query.vector).max(keepdims=True))
        matches.append(match)

    # beside the bank of the heaviest part alone the means of the mixtures would be 0.82, 0.02 and 0.77
    assert np.mean(matches) == pytest.approx(0.5, abs=0.08)
    assert np.mean(np.array(matches) > LIKELY) < 0.1


def test_chance_hit_of_a_modality_that_is_rarely_first_is_not_likely(banks, pictures):
    """Among four texts nearly any text is above what unrelated queries find."""
    with_few_texts = scored(banks, image=pictures, text=around(13, 4, 0.8))
    scale = Scale(with_few_texts, query_of_word(around(14, 1, 1.0)[0]))
    texts = with_few_texts.scores("word", "text")
    images = with_few_texts.scores("word", "image")
    nearer_than_nine_of_ten = np.quantile(texts.best, 0.9)

    z, matches = scale.score("text", np.array([nearer_than_nine_of_ten, 0.9]))

    _, match_of_same_z = scale.score("image", images.mean + z[:1] * images.deviation)
    assert match_of_same_z[0] < 0.1
    assert matches[0] < 0.3
    assert matches[1] > LIKELY  # far above


WORD = ("word", around(12, 1, 1.0)[0], 1.0)
SOUND = ("audio", around(12, 1, 1.0)[0], 1.0)


@pytest.mark.parametrize(
    ("parts", "modality"),
    [
        ([SOUND], "image"),
        ([WORD, SOUND], "image"),
        ([WORD], "text"),
    ],
    ids=["no bank of sounds", "no bank of one part", "no texts in the folder"],
)
def test_no_bank_means_no_match(folder_banks, parts, modality):
    cosines = np.array([0.3, 0.2])

    z, matches = Scale(folder_banks, query_of(*parts)).score(modality, cosines)

    assert matches is None
    assert z.tolist() == cosines.tolist()


@pytest.mark.parametrize(
    ("match", "word"),
    [
        (LIKELY, "likely"),
        (LIKELY - 1e-6, "possible"),
        (POSSIBLE, "possible"),
        (POSSIBLE - 1e-6, "weak"),
    ],
)
def test_likelihood_in_words(match, word):
    assert WORDS[level(np.array(match))] == word
