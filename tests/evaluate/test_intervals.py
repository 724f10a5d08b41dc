"""Bootstrap intervals: as wide as they should be, always the same, narrower for pairs."""

import numpy as np
import pytest

from onepeace.evaluate.intervals import draws, interval, paired_interval


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution():
    hits = [1] * 300 + [0] * 700
    low, high = interval(hits)
    spread = 1.96 * (0.3 * 0.7 / 1000) ** 0.5
    assert (low, high) == (pytest.approx(0.3 - spread, abs=0.004), pytest.approx(0.3 + spread, abs=0.004))
    assert interval(hits) == (low, high)


def test_a_pair_of_equal_queries_is_told_apart_where_two_intervals_are_not():
    random = np.random.default_rng(2)
    a = (random.random(1000) < 0.5).astype(int)
    b = a.copy()
    b[np.flatnonzero(a == 0)[:20]] = 1  # twenty queries more
    low, high = paired_interval(a, b)
    assert 0 < low < 0.02 < high
    assert interval(a)[1] > interval(b)[0]
    assert paired_interval(b, a) == (pytest.approx(-high), pytest.approx(-low))
    assert paired_interval(a, a) == (0, 0)


def test_draws_are_the_same_for_equally_many():
    assert all((a == b).all() for a, b in zip(draws(7, 3), draws(7, 3), strict=True))
    assert len(list(draws(7))) == 1000
