"""Figures of written captions, against pycocoevalcap on the words that Java printed."""

import json
from pathlib import Path

import numpy as np
import pytest

from onepeace.errors import UserError
from onepeace.evaluate.captions import CiderReward, most_frequent, score_captions

cider = pytest.importorskip("pycocoevalcap.cider.cider")

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ptb_words.json").read_text(encoding="utf-8"))["same"]
ITEMS = 60
SEVERAL = (1, 5, 3)
"""References of the items, in turn."""


@pytest.fixture(scope="module")
def items():
    """Captions and references (texts), and the same as Java's words: 60 items, whose texts share many words."""
    random = np.random.default_rng(0)
    chosen = [pair for pair in GOLDEN if pair[1]]
    first = [chosen[i] for i in random.permutation(len(chosen))[:ITEMS]]
    several = []
    for i, (text, words) in enumerate(first):
        others = [chosen[j] for j in random.integers(len(chosen), size=SEVERAL[i % 3])]
        # A caption is a part of its first reference.
        several.append([(f"{text} {others[0][0]}", f"{words} {others[0][1]}"), *others[1:]] if i % 2 else others)
    texts = [text for text, _ in first], [[text for text, _ in others] for others in several]
    words = {i: [one[1]] for i, one in enumerate(first)}, {i: [one[1] for one in r] for i, r in enumerate(several)}
    return texts, words


def library(candidates, references):
    """The figures of pycocoevalcap: of all captions, and ROUGE-L and CIDEr-D of each."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.rouge.rouge import Rouge

    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    rouge, rouges = Rouge().compute_score(references, candidates)
    value, values = cider.Cider().compute_score(references, candidates)
    return (bleu[3], rouge, value), (rouges, values)


def test_figures_are_those_of_coco_caption(items):
    (candidates, references), words = items
    together, each = library(*words)
    scores = score_captions(candidates, references)
    np.testing.assert_allclose([scores.bleu, scores.rouge.mean(), scores.cider.mean()], together, rtol=0, atol=1e-12)
    np.testing.assert_allclose([scores.rouge, scores.cider], each, rtol=0, atol=1e-12)
    assert all(0.01 < value for value in together)  # they have something in common


def test_a_reward_does_not_depend_on_the_batch(items):
    (candidates, references), words = items
    reward, (_, (_, want)) = CiderReward(references), library(*words)
    np.testing.assert_allclose(reward(candidates, references), want, rtol=0, atol=1e-12)
    single = [reward([one], [several])[0] for one, several in zip(candidates[:9], references, strict=False)]
    np.testing.assert_allclose(single, want[:9], rtol=0, atol=1e-12)


def test_the_end_word_is_a_word_of_every_caption(items):
    (candidates, references), words = items
    ended = [{i: [f"{one} ends" for one in several] for i, several in known.items()} for known in words]
    _, (_, want) = library(*ended)
    np.testing.assert_allclose(CiderReward(references, end="ends")(candidates, references), want, rtol=0, atol=1e-12)
    corpus = [["a dog runs on a field", "the dog runs"], ["a cat sleeps"], ["two men talk"]]
    plain, with_end = CiderReward(corpus), CiderReward(corpus, end="<eos>")
    (whole, cut), (whole_end, cut_end) = (
        reward(["a dog runs on a field", "a dog runs on a"], [corpus[0]] * 2) for reward in (plain, with_end)
    )
    assert cut_end / whole_end < cut / whole


def test_an_empty_caption_is_worth_nothing():
    scores = score_captions(["", "a dog"], [["a dog", "..."], ["a dog runs"]])
    assert (scores.rouge[0], scores.cider[0]) == (0, 0)
    assert scores.rouge[1] > 0.5


def test_one_item_has_no_frequencies():
    with pytest.raises(UserError, match="CIDEr-D compares 2 items or more, and this is 1"):
        score_captions(["a"], [["a"]])


def test_the_most_frequent_caption_is_one_of_equal_words():
    captions = ["A cat.", "A dog runs!", "a cat", "the sky", "a dog runs", "A DOG, runs"]
    assert most_frequent(captions) == "A dog runs!"
    assert most_frequent(["one", "two", "two", "one"]) == "one"
