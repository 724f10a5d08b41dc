"""Ways to rank again what a search found, given every query of the set. Next: retrieval.py.

These figures are not those of a search: each query is ranked with the help of the other queries, which someone who
asks one question does not have. They get rows of their own, named after the method.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rescore = Callable[[NDArray], NDArray]
"""Scores (n, M) of any n of the queries against all candidates -> the scores to rank by, same shape."""


def dual_softmax(queries: NDArray, candidates: NDArray, scale: float, block: int) -> Rescore:
    """Multiply each similarity by its candidate's softmax over the queries (CAMoE, arXiv 2109.04290).

    A candidate that is near to many queries divides its weight among them, so a hub no longer tops every list.

    Args:
        queries, candidates: (N, E) and (M, E) vectors.
        scale: factor on the similarities in the softmax, the inverse of a temperature.
        block: candidates taken at once, bounds the memory.

    As published, a negative similarity stays negative and a smaller weight lifts it.
    """
    log_sums = np.concatenate(
        [
            np.logaddexp.reduce(scale * _double(queries @ candidates[i : i + block].T), axis=0)
            for i in range(0, len(candidates), block)
        ]
    )
    return lambda scores: scores * np.exp(scale * _double(scores) - log_sums)


def _double(scores: NDArray) -> NDArray[np.float64]:
    """In float32 the small weights would be 0, and equal."""
    return scores.astype(np.float64)


RERANKERS: dict[str, Callable[[NDArray, NDArray, float, int], Rescore]] = {"dual_softmax": dual_softmax}
