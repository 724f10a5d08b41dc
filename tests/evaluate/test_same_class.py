"""Search between modalities that were never paired: the figures, ties, and matches that do not fit."""

import numpy as np
import pytest
from support.evaluation import SAME_CLASS, worst_order

from onepeace.evaluate.protocols.same_class import Labelled, precisions

RECIPE = SAME_CLASS


def labelled(seed, labels):
    """Items with random vectors, some of them equal in part, so that scores are tied."""
    label_of_item = np.array(labels.split())
    vectors = np.random.default_rng(seed).normal(size=(len(label_of_item), 3))
    return Labelled(vectors.round(1), label_of_item)


SOUNDS = labelled(1, "dog horn motor rain dog horn motor motor dog")
PICTURES = labelled(2, "pug car tree bus car terrier tree tree tree pug bus")
TO_PICTURES = {
    "dog": ["pug", "terrier"],
    "horn": ["car"],
    "motor": ["car", "bus"],
}
TO_SOUNDS = {
    "pug": ["dog"],
    "terrier": ["dog"],
    "car": ["horn", "motor"],
    "bus": ["motor"],
}


def plain_precisions(queries, candidates, matches, k):
    """For each query with a match: the share of right items among its first k, and among all."""
    shares = []
    chances = []
    for vector, label in zip(queries.vectors, queries.labels, strict=True):
        is_right = np.isin(candidates.labels, matches.get(label, []))
        if is_right.any():
            first = worst_order(candidates.vectors @ vector, is_right)[:k]
            shares.append(is_right[first].mean())
            chances.append(is_right.mean())
    return shares, chances


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize(
    ("queries", "candidates", "matches"),
    [
        (SOUNDS, PICTURES, TO_PICTURES),
        (PICTURES, SOUNDS, TO_SOUNDS),
    ],
    ids=["sounds", "pictures"],
)
def test_precisions_equal_a_plain_loop(queries, candidates, matches, k):
    shares, chances = plain_precisions(queries, candidates, matches, k)

    (figure,) = precisions("x", queries, candidates, matches, at=[k])

    assert figure.metric == f"x precision@{k}"
    assert figure.value == pytest.approx(np.mean(shares))
    assert figure.chance == pytest.approx(np.mean(chances))
    assert figure.n == len(shares)
    assert sorted(figure.per_query) == pytest.approx(sorted(shares))
    assert 0 < figure.value < 1


def test_matched_items_are_searched_among_all(measured, pictures):
    to_image, to_audio = measured()

    assert to_image[:2] == ("both", "audio to image precision@2")
    assert to_audio[:2] == ("both", "image to audio precision@2")
    # the dog's sound finds two dogs, the cat's one cat
    assert to_image.value == pytest.approx((1 + 1 / 2) / 2)
    assert to_image.chance == pytest.approx((2 / 4 + 1 / 4) / 2)
    assert to_image.n == 2
    # each picture has one sound among four
    assert to_audio.value == pytest.approx(1 / 2)
    assert to_audio.chance == pytest.approx(1 / 4)
    assert to_audio.n == 3
    assert to_audio.ratio == pytest.approx(2)
