"""Measures of one ranked list, in which a query may mean many items: plain numpy, no model.

Scores `found` (n,) and what is `relevant` (n,), at least one item of it. Ties count against the ranking.
"""

import numpy as np
from numpy.typing import NDArray


def ordered(found: NDArray, relevant: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Numbers of the items, best score first; of equal scores, and of NaN, the wrong ones come first."""
    found = np.where(np.isnan(found), np.where(relevant, -np.inf, np.inf), found)
    return np.lexsort((relevant, -found))


def ndcg(found: NDArray, relevant: NDArray[np.bool_], k: int) -> float:
    """Sum of 1 / log2(1 + rank) of the relevant items among the first k, over that of the best order; one query."""
    gains = relevant[ordered(found, relevant)[:k]]
    return float(_discounts(len(gains)) @ gains) / _ideal(relevant, k)


def chance_ndcg(relevant: NDArray[np.bool_], k: int) -> float:
    """`ndcg` of a random order, on average."""
    return float(relevant.mean() * _discounts(min(k, len(relevant))).sum()) / _ideal(relevant, k)


def recall(found: NDArray, relevant: NDArray[np.bool_], k: int) -> float:
    """Share of the relevant items that are among the first k; one query."""
    return float(relevant[ordered(found, relevant)[:k]].sum() / relevant.sum())


def chance_recall(relevant: NDArray[np.bool_], k: int) -> float:
    """`recall` of a random order, on average."""
    return min(k, len(relevant)) / len(relevant)


def _discounts(k: int) -> NDArray[np.float64]:
    return 1 / np.log2(np.arange(2, k + 2))


def _ideal(relevant: NDArray[np.bool_], k: int) -> float:
    return float(_discounts(min(k, int(relevant.sum()))).sum())
