"""Bootstrap confidence intervals: queries are resampled with replacement, with a fixed seed.

The interval is the middle 95 % of the figures of 1,000 such draws (Efron's percentile interval). It covers the
choice of queries, not of candidates or training runs. Queries are treated as independent: if five captions share a
picture, the interval is somewhat too narrow. For a figure of 0 or 100 %, the draws do not differ, so the interval is
that point.
"""

from collections.abc import Iterator, Sequence

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
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def interval(per_query: Sequence[float]) -> tuple[float, float]:
    """The interval of the mean of one value per query."""
    values = np.asarray(per_query, dtype=np.float64)
    means = [values[rows].mean() for rows in draws(len(values))]
    return middle(means)


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The interval of the difference second - first of two results on the same queries, drawn for both at once."""
    first_values = np.asarray(first, dtype=np.float64)
    second_values = np.asarray(second, dtype=np.float64)
    differences = []
    for rows in draws(len(first_values)):
        differences.append(second_values[rows].mean() - first_values[rows].mean())
    return middle(differences)
