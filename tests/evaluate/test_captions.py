"""Figures of written captions, against pycocoevalcap on the words that Java printed."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from onepeace.errors import UserError
from onepeace.evaluate.captions import CiderReward, most_frequent, score_captions

cider = pytest.importorskip("pycocoevalcap.cider.cider")

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ptb_words.json").read_text(encoding="utf-8"))["same"]
ITEMS = 60
NUM_REFERENCES = (1, 5, 3)
"""Of the items, in turn."""


class Captioned(NamedTuple):
    """Items with a caption each, and several references."""

    captions: list[str]
    references: list[list[str]]


class LibraryScores(NamedTuple):
    """Figures of pycocoevalcap: of all captions, and of each."""

    bleu: float
    rouge: float
    cider: float
    rouges: np.ndarray
    ciders: np.ndarray


@pytest.fixture(scope="module")
def items():
    """The same items twice, as texts and as the words that Java made of them; the items share many words."""
    random = np.random.default_rng(0)
    sentences = [(text, words) for text, words in GOLDEN if words]
    as_texts = Captioned([], [])
    as_words = Captioned([], [])
    for i, row in enumerate(random.permutation(len(sentences))[:ITEMS]):
        text, words = sentences[row]
        references = [sentences[j] for j in random.integers(len(sentences), size=NUM_REFERENCES[i % 3])]
        if i % 2:  # the caption is a part of its first reference
            first_text, first_words = references[0]
            references[0] = (f"{text} {first_text}", f"{words} {first_words}")
        reference_texts, reference_words = zip(*references, strict=True)
        as_texts.captions.append(text)
        as_texts.references.append(list(reference_texts))
        as_words.captions.append(words)
        as_words.references.append(list(reference_words))
    return as_texts, as_words


def library_scores(items):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    captions = {i: [caption] for i, caption in enumerate(items.captions)}
    references = dict(enumerate(items.references))
    bleu, _ = Bleu(4).compute_score(references, captions, verbose=0)
    rouge, rouges = Rouge().compute_score(references, captions)
    mean_cider, ciders = cider.Cider().compute_score(references, captions)
    return LibraryScores(bleu[3], rouge, mean_cider, rouges, ciders)


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_figures_are_those_of_coco_caption(items):
    texts, words = items
    expected = library_scores(words)

    scores = score_captions(*texts)

    assert_equal(scores.bleu, expected.bleu)
    assert_equal(scores.rouge, expected.rouges)
    assert_equal(scores.rouge.mean(), expected.rouge)
    assert_equal(scores.cider, expected.ciders)
    assert_equal(scores.cider.mean(), expected.cider)
    assert min(expected.bleu, expected.rouge, expected.cider) > 0.01  # captions and references have words in common


def test_reward_does_not_depend_on_the_batch(items):
    texts, words = items
    expected = library_scores(words).ciders
    reward = CiderReward(texts.references)

    assert_equal(reward(*texts), expected)
    for i in range(9):
        assert_equal(reward([texts.captions[i]], [texts.references[i]]), expected[i])


def test_reward_counts_the_end_as_a_word(items):
    texts, words = items
    ended_captions = [f"{caption} ends" for caption in words.captions]
    ended_references = [[f"{reference} ends" for reference in references] for references in words.references]
    expected = library_scores(Captioned(ended_captions, ended_references)).ciders

    reward = CiderReward(texts.references, end="ends")

    assert_equal(reward(*texts), expected)


def test_reward_with_end_punishes_a_cut_caption():
    corpus = [["a dog runs on a field", "the dog runs"], ["a cat sleeps"], ["two men talk"]]
    candidates = ["a dog runs on a field", "a dog runs on a"]
    references = [corpus[0], corpus[0]]

    whole, cut = CiderReward(corpus)(candidates, references)
    whole_with_end, cut_with_end = CiderReward(corpus, end="<eos>")(candidates, references)

    assert cut_with_end / whole_with_end < cut / whole


def test_empty_caption_scores_0():
    scores = score_captions(["", "a dog"], [["a dog", "..."], ["a dog runs"]])

    assert scores.rouge[0] == scores.cider[0] == 0
    assert scores.rouge[1] > 0.5


def test_one_item_is_too_few_for_cider():
    with pytest.raises(UserError, match="2 items"):
        score_captions(["a"], [["a"]])


def test_most_frequent_counts_equal_words_as_one():
    captions = ["A cat.", "A dog runs!", "a cat", "the sky", "a dog runs", "A DOG, runs"]
    assert most_frequent(captions) == "A dog runs!"


def test_most_frequent_is_the_first_of_ties():
    assert most_frequent(["one", "two", "two", "one"]) == "one"
