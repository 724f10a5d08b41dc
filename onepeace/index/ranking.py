"""Scores of pictures, sounds and texts on one scale, and the match: whether a hit is likely to be right.

The same folder was asked for some hundred unrelated things (`calibrate.py`). Nothing is fitted; the model, the kinds of
query and file, and the size and nature of the folder are all in what they scored there (docs/results/match.md).

* z orders a mixed list: how many deviations a cosine is above the mean of unrelated queries with files of its kind.
* the match is shown: the share of unrelated queries whose best hit of its kind scores lower. "97 of 100 unrelated words
  find nothing as near here."

Kinds may disagree about the order, so no hit is said to match better than one above it (`falling`).

A query of several parts is q = sum of w_p v_p, unnormalised. Unrelated queries like it are made of the banks of its
parts, one of each at a time. What such a mixture scores in the folder is not known, but what its parts do is: with r_p
the mean and b_p the best cosine of an unrelated query with the files of a kind, and parts that are near to different
files, the mean is the sum of w_p r_p, and the best is above it by the root of the sum of (w_p (b_p - r_p))^2. For a
query of one part, and for a folder of one file, that is exact.
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
"""Variance that is counted at least, so that every z is finite."""
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
        count = max(len(best) for best, _, _ in known)
        mean, variance = 0.0, 0.0
        means, excesses = np.zeros(count), np.zeros(count)
        for number, (part, (best, own, squares)) in enumerate(zip(query.parts, known, strict=True)):
            drawn = np.random.default_rng(number).permutation(count) % len(best)  # parts that have nothing in common
            means += part.weight * own[drawn]
            excesses += np.square(part.weight * (best - own)[drawn])
            mean += part.weight * float(own.mean())
            variance += part.weight**2 * float(squares.mean() - own.mean() ** 2)
        unrelated = np.sort(means + np.sqrt(excesses))
        scores = cosines * np.linalg.norm(np.sum([part.weight * part.vector for part in query.parts], axis=0))
        z = (scores - mean) / np.sqrt(max(variance, SMALLEST))
        match = np.searchsorted(unrelated, scores) / count
        return z.astype(np.float32), match.astype(np.float32)


def falling(match: NDArray) -> NDArray:
    """Matches (n,) of a list in its order, each at most that of the hit above it."""
    return np.minimum.accumulate(match)
