"""Figures of written captions, against pycocoevalcap on the words that Java printed."""

from typing import NamedTuple

import numpy as np
import pytest
from support.golden import golden_json

from onepeace.generative.captions import CiderReward, most_frequent, score_captions

cider = pytest.importorskip("pycocoevalcap.cider.cider")

ITEMS = 60
NUM_REFERENCES = (1, 5, 3)
"""Numbers of references of the items, in turn."""


class Captioned(NamedTuple):
    """Items with a caption each, and several references."""

    captions: list[str]
    references: list[list[str]]


@pytest.fixture(scope="module")
def items():
    """The same items twice, as texts and as the words that Java made of them; the items share many words."""
    random = np.random.default_rng(0)
    sentences = [sentence for sentence in golden_json("ptb_words.json")["same"] if all(sentence)]
    as_texts = Captioned([], [])
    as_words = Captioned([], [])
    random.shuffle(sentences)
    for i, (text, words) in enumerate(sentences[:ITEMS]):
        references = random.choice(sentences, NUM_REFERENCES[i % 3]).tolist()
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
    """Figures of pycocoevalcap: BLEU-4 of all captions, ROUGE-L and CIDEr-D of each."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    captions = {i: [caption] for i, caption in enumerate(items.captions)}
    references = dict(enumerate(items.references))
    bleu, _ = Bleu(4).compute_score(references, captions, verbose=0)
    _, rouge = Rouge().compute_score(references, captions)
    _, cider_d = cider.Cider().compute_score(references, captions)
    return bleu[3], rouge, cider_d


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_figures_are_those_of_coco_caption(items):
    texts, words = items
    bleu, rouge, cider_d = library_scores(words)

    scores = score_captions(*texts)

    assert_equal(scores.bleu, bleu)
    assert_equal(scores.rouge, rouge)
    assert_equal(scores.cider, cider_d)
    assert min(bleu, rouge.mean(), cider_d.mean()) > 0.01  # captions and references have words in common


def test_reward_does_not_depend_on_the_batch(items):
    texts, words = items
    _, _, expected = library_scores(words)
    reward = CiderReward(texts.references)

    assert_equal(reward(*texts), expected)
    single = [reward(texts.captions[i : i + 1], texts.references[i : i + 1]) for i in range(9)]
    assert_equal(np.concatenate(single), expected[:9])


def test_empty_caption_scores_0():
    scores = score_captions(["", "a dog"], [["a dog", "..."], ["a dog runs"]])

    assert scores.rouge[0] == scores.cider[0] == 0
    assert scores.rouge[1] > 0.5


def test_most_frequent_counts_equal_words_as_one_and_takes_the_first_of_ties():
    captions = ["A cat.", "A dog runs!", "a cat", "the sky", "a dog runs"]
    assert most_frequent(captions) == "A cat."
