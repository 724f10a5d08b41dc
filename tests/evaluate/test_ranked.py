"""NDCG of hand-made lists, ties, and what chance gives against shuffles."""

import numpy as np
import pytest

from onepeace.evaluate.protocols.match import chance_ndcg, ndcg, ordered


def relevant(*places, n=8):
    return np.isin(np.arange(n), places)


def test_ndcg_of_a_hand_made_list():
    found = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    gains = 1 / np.log2([2, 3, 4, 5])
    assert ndcg(found, relevant(1, 3, 7), 4) == pytest.approx((gains[1] + gains[3]) / gains[:3].sum())
    assert ndcg(found, relevant(0, 1, 2), 2) == 1.0  # the best order has as many as fit
    assert ndcg(found, relevant(7), 4) == 0
    assert ndcg(found, relevant(7), 20) == pytest.approx(1 / np.log2(9))


def test_ties_and_nan_count_against_the_ranking():
    assert ordered(np.zeros(4), relevant(0, 2, n=4)).tolist() == [1, 3, 0, 2]
    assert ordered(np.array([np.nan, 0.5, np.nan, 0.1]), relevant(0, n=4)).tolist() == [2, 1, 3, 0]


@pytest.mark.parametrize("k", [3, 20])
def test_chance_is_the_mean_over_random_orders(k):
    rng = np.random.default_rng(0)
    for own in (relevant(2), relevant(1, 4, 5, 6)):
        shuffled = [rng.permutation(8) for _ in range(4000)]
        assert np.mean([ndcg(row, own, k) for row in shuffled]) == pytest.approx(chance_ndcg(own, k), abs=0.02)
