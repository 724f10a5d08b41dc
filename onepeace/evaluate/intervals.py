"""Bootstrap confidence intervals: queries are drawn again with replacement, with a fixed seed.

The interval is the middle 95 % of the figures of 1,000 such draws (Efron's percentile interval). It speaks of other
queries of the same kind, not of other candidates or another training run. Queries are taken as independent: where five
captions share a picture it is somewhat too narrow. A figure at 0 or 100 % has no spread to draw from, and its interval
is that point.
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
    """The interval of the mean of one value for each query."""
    values = np.asarray(per_query, dtype=np.float64)
    return middle([values[draw].mean() for draw in draws(len(values))])


def paired_interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The interval of the difference second - first of two results on the same queries, drawn for both at once."""
    a, b = (np.asarray(values, dtype=np.float64) for values in (first, second))
    return middle([b[draw].mean() - a[draw].mean() for draw in draws(len(a))])
