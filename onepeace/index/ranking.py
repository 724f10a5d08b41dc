"""Scores of pictures, sounds and texts on one scale, and the match: whether a hit is likely to be right.

The same folder was asked for some hundred unrelated things (`calibrate.py`). Nothing is fitted; the model, the kinds of
query and file, and the size and nature of the folder are all in what they scored there (docs/results/match.md).

* z orders a mixed list: how many deviations a cosine is above the mean of unrelated queries with files of its kind.
* the match is shown: the share of unrelated queries whose best hit of its kind scores lower. "97 of 100 unrelated words
  find nothing as near here."

Kinds may disagree about the order, so no hit is said to match better than one above it (`falling`).

A query of several parts is q = sum of w_p v_p, unnormalised. Unrelated queries like it are made of the banks of its
parts, one of each at a time, that agree with one another as its parts do. What such a mixture scores in the folder is
not known, but what its parts do is: the mean is the sum of w_p r_p, with r_p the mean cosine of an unrelated query with
the files of a kind; the best is above it by sqrt(sum of w_p w_q e_p e_q a_pq), with e_p what the best of that query is
above its mean, and a_pq the cosine of two parts without what all queries of their banks have in common. That is how
spreads of sums add up. For a query of one part, and for a folder of one file, it is exact.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onepeace.index.calibrate import Banks

if TYPE_CHECKING:
    from onepeace.index.query import QueryVector

LIKELY = 0.95
"""Match above which a hit is likely what was meant: 19 of 20 unrelated queries find nothing as near."""
POSSIBLE = 2 / 3
"""Match from which it is possible: two of three."""
SMALLEST = 1e-8
"""Counted at least where something is divided by it."""
RELEVANT = 0.25
"""Where no hit has this much, nothing relevant was found: three of four unrelated queries find something nearer."""


def likelihood(match: float) -> str:
    """A match in a word."""
    return "likely" if match > LIKELY else "possible" if match >= POSSIBLE else "unlikely"


class Ranking:
    """Scores on one scale for pictures, sounds and texts."""

    def __init__(self, banks: Banks) -> None:
        self.banks = banks

    @classmethod
    def load(cls, calibration: bytes | None, best: bytes | None) -> "Ranking":
        """Of an index: `Banks.to_bytes` and `Banks.best_bytes`; None: cosines alone."""
        return cls(Banks.load(calibration, best))

    def score(self, query: "QueryVector", modality: str, cosines: NDArray) -> tuple[NDArray, NDArray | None]:
        """What the cosines (n,) of a query with items of one modality mean.

        Returns:
            z (n,) and the match (n,) in 0..1, in the order of the cosines; the cosines themselves and None if a part
            has no bank.
        """
        seen = [self.banks.seen(part.bank, modality) for part in query.parts]
        known = [one for one in seen if one is not None]
        if not known or len(known) < len(seen):
            return cosines, None
        weights = np.array([part.weight for part in query.parts])
        vectors = np.stack([part.vector for part in query.parts])
        apart = vectors - np.stack([one.centre for one in known])
        apart /= np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), SMALLEST)
        agree = np.outer(weights, weights) * (apart @ apart.T)
        count = max(len(one.best) for one in known)
        drawn = [_drawn(i, count) % len(one.best) for i, one in enumerate(known)]
        means = np.stack([one.means[rows] for one, rows in zip(known, drawn, strict=True)])  # (parts, count)
        above = np.stack([one.best[rows] for one, rows in zip(known, drawn, strict=True)]) - means
        unrelated = np.sort(weights @ means + np.sqrt(np.maximum(np.einsum("pn,pq,qn->n", above, agree, above), 0)))
        spread = np.sqrt([one.variance for one in known])
        scores = cosines * np.linalg.norm(weights @ vectors)
        z = (scores - weights @ [one.means.mean() for one in known]) / np.sqrt(max(spread @ agree @ spread, SMALLEST))
        match = np.searchsorted(unrelated, scores) / count
        return z.astype(np.float32), match.astype(np.float32)


def _drawn(part: int, count: int) -> NDArray:
    """Order in which the unrelated queries of a part come, (count,) int: one of its own for each part."""
    return np.arange(count) if not part else np.random.default_rng(part).permutation(count)


def falling(match: NDArray) -> NDArray:
    """Matches (n,) of a list in its order, each at most that of the hit above it."""
    return np.minimum.accumulate(match)
