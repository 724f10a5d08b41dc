"""Bootstrap intervals: as wide as they should be, always the same, narrower for pairs."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.evaluate.intervals import DRAWS, gain_of_groups, interval


@pytest.mark.parametrize(("share", "count"), [(0.3, 1000), (0.5, 400)])
def test_interval_of_a_share_is_that_of_the_binomial_distribution(share, count):
    hits = [1] * round(share * count) + [0] * round((1 - share) * count)
    half_width = 1.96 * (share * (1 - share) / count) ** 0.5

    low, high = interval(hits)

    assert low == pytest.approx(share - half_width, abs=0.005)
    assert high == pytest.approx(share + half_width, abs=0.005)
    assert interval(hits) == (low, high)
    assert DRAWS >= 1000


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_interval_of_few_values_is_that_of_all_draws(values):
    """All equally likely draws with replacement, of which the bootstrap takes a thousand."""
    means = [np.mean(draw) for draw in product(values, repeat=len(values))]

    def between(share_below, value, share_above):
        least = np.quantile(means, share_below, method="lower")
        most = np.quantile(means, share_above, method="higher")
        return least - 1e-9 <= value <= most + 1e-9

    low, high = interval(values)
    assert between(0.01, low, 0.045)
    assert between(0.955, high, 0.99)


def test_intervals_of_pairs_are_those_of_the_normal_distribution():
    """200 groups of two queries, which are right together before; after, 40 of the wrong ones are right as well."""
    before = np.repeat(np.arange(200) < 100, 2)
    after = np.repeat(np.arange(200) < 120, 2)
    groups = np.repeat(np.arange(200), 2)

    first, second, gain = gain_of_groups(before, after, groups)

    def half_width(share):
        return 1.96 * (share * (1 - share) / 200) ** 0.5

    for estimate, share, factor in ((first, 0.5, 2**0.5), (second, 0.6, 2**0.5), (gain, 0.1, 1)):
        # A figure is compared with that of as many other groups, whose error adds to its own.
        assert estimate.value == pytest.approx(share)
        assert estimate.high - share == pytest.approx(factor * half_width(share), abs=0.012)
        assert share - estimate.low == pytest.approx(factor * half_width(share), abs=0.012)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 5)), min_size=1, max_size=20))
def test_estimates_of_any_queries(queries):
    before, after, groups = map(np.array, zip(*queries, strict=True))

    first, second, gain = gain_of_groups(before, after, groups)

    assert first.value == pytest.approx(before.mean())
    assert second.value == pytest.approx(after.mean())
    assert gain.value == pytest.approx(after.mean() - before.mean())
    for estimate in (first, second):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high
    assert -1 <= gain.low <= gain.value <= gain.high <= 1
    # Before and after change places, and the numbers of groups mean nothing but who belongs together.
    second_first, first_second, loss = gain_of_groups(after, before, 7 * groups + 3)
    assert (second_first, first_second) == (second, first)
    assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
