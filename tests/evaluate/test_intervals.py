"""Bootstrap intervals: as wide as they should be, always the same, narrower for pairs."""

import pytest

from onepeace.evaluate.intervals import interval


def test_interval_of_a_share_is_that_of_the_binomial_distribution():
    hits = [1] * 300 + [0] * 700
    half_width = 1.96 * (0.3 * 0.7 / 1000) ** 0.5

    low, high = interval(hits)

    assert low == pytest.approx(0.3 - half_width, abs=0.004)
    assert high == pytest.approx(0.3 + half_width, abs=0.004)
    assert interval(hits) == (low, high)
