"""Bootstrap intervals: as wide as they should be, always the same, narrower for pairs."""

import numpy as np
import pytest

from onepeace.evaluate.intervals import DRAWS, draws, interval, paired_interval


def test_interval_of_a_share_is_that_of_the_binomial_distribution():
    hits = [1] * 300 + [0] * 700
    half_width = 1.96 * (0.3 * 0.7 / 1000) ** 0.5

    low, high = interval(hits)

    assert low == pytest.approx(0.3 - half_width, abs=0.004)
    assert high == pytest.approx(0.3 + half_width, abs=0.004)
    assert interval(hits) == (low, high)


@pytest.fixture(scope="module")
def first():
    """Which of a thousand queries are right."""
    return np.random.default_rng(2).integers(2, size=1000)


@pytest.fixture(scope="module")
def second(first):
    """The same, and twenty queries more."""
    hits = first.copy()
    hits[np.flatnonzero(first == 0)[:20]] = 1
    return hits


def test_paired_interval_separates_what_two_intervals_do_not(first, second):
    low, high = paired_interval(first, second)

    assert 0 < low < 0.02 < high
    assert interval(first)[1] > interval(second)[0]
    assert paired_interval(second, first) == pytest.approx((-high, -low))


def test_paired_interval_of_equal_results_is_0(first):
    assert paired_interval(first, first) == (0, 0)


def test_draws_are_the_same_for_the_same_number_of_queries():
    np.testing.assert_array_equal(list(draws(7)), list(draws(7)))
    assert len(list(draws(7))) == DRAWS == 1000
