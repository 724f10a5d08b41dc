"""Bootstrap confidence intervals: queries are resampled with replacement, with a fixed seed.

The interval is the middle 95 % of the figures of 1,000 such draws (Efron's percentile interval). It covers the
choice of queries, not of candidates or training runs. Queries are treated as independent: if five captions share a
picture, the interval is somewhat too narrow. For a figure of 0 or 100 %, the draws do not differ, so the interval is
that point. `gain_of_groups` draws groups of queries instead, and its intervals are never a point.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
LEVEL = 0.95
SEED = 0


def draws(n: int, count: int = DRAWS) -> Iterator[NDArray[np.int64]]:
    """Indices (n,) of the queries of each draw."""
    random = np.random.default_rng(SEED)
    return (random.integers(n, size=n) for _ in range(count))


def middle(figures: Sequence[float]) -> tuple[float, float]:
    """The central 95 % interval of the figures of all draws."""
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(figures, [outside, 1 - outside])
    return float(low), float(high)


def interval(per_query: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean of one value per query."""
    values = np.asarray(per_query, dtype=np.float64)
    means = [values[rows].mean() for rows in draws(len(values))]
    return middle(means)


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.0%}..{self.high:.0%})"

    @property
    def signed(self) -> str:
        """The figure as text with signs, for a difference."""
        return f"{self.value:+.1%} ({self.low:+.0%}..{self.high:+.0%})"


def gain_of_groups(before: NDArray, after: NDArray, groups: NDArray[np.int64]) -> tuple[Estimate, Estimate, Estimate]:
    """Means before and after of a value from 0 to 1 for each query (n,), and their difference, with intervals.

    The interval of a figure covers its value on another sample of the same size (two-sample bootstrap over groups);
    that of the difference is a paired bootstrap. One right and one wrong query are added as groups, so that the
    interval is never a single point.

    Args:
        groups: number of each query's group (n,).
    """
    _, group_of_query = np.unique(groups, return_inverse=True)
    sizes = np.append(np.bincount(group_of_query), [1, 1])
    sums_before = np.append(np.bincount(group_of_query, before), [0, 1])
    sums_after = np.append(np.bincount(group_of_query, after), [0, 1])
    counts = _group_counts(len(sizes))
    num_queries = counts @ sizes
    means_before = counts @ sums_before / num_queries
    means_after = counts @ sums_after / num_queries
    differences = (means_after - means_before)[:DRAWS]
    mean_before = sums_before.sum() / sizes.sum()
    mean_after = sums_after.sum() / sizes.sum()
    return (
        _estimate(before.mean(), _other_samples(means_before, mean_before)),
        _estimate(after.mean(), _other_samples(means_after, mean_after)),
        _estimate(after.mean() - before.mean(), differences),
    )


def _group_counts(num_groups: int) -> NDArray[np.int64]:
    """How often each group is in each of two times DRAWS draws with replacement: (2 DRAWS, groups)."""
    shape = (2 * DRAWS, num_groups)
    drawn = np.random.default_rng(SEED).integers(num_groups, size=shape)
    first_of_row = num_groups * np.arange(len(drawn))[:, None]
    numbers = (first_of_row + drawn).ravel()
    return np.bincount(numbers, minlength=drawn.size).reshape(shape)


def _other_samples(means: NDArray, mean: float) -> NDArray:
    """Means of other samples: the error of a first sample is added to that of a second one."""
    return (means[:DRAWS] + means[DRAWS:] - mean).clip(0, 1)


def _estimate(mean: float, figures: NDArray) -> Estimate:
    return Estimate(float(mean), *middle(figures.tolist()))
