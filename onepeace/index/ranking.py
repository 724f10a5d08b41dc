"""The match of a hit: how it does beside queries that have nothing to do with the folder.

The same folder was asked for some hundred unrelated things (`calibrate.py`). The match is the share of them whose best
hit of this kind scores lower: "97 of 100 unrelated words find nothing as near here". Nothing is fitted; the model, the
kinds of query and file, and the size and nature of the folder are all in it. docs/results/match.md measures it.

A query of several parts is q = sum of w_p v_p, unnormalised. Unrelated queries like it are made of the banks of its
parts, one of each at a time. The best score that such a mixture has in the folder is not known, but those of its parts
are: with r_p the mean cosine of an unrelated query with the files of a kind, b_p its best, and parts that are near to
different files, the mixture's scores have the mean sum of w_p r_p, and its best is above that by about
sqrt(sum of (w_p (b_p - r_p))^2). For a query of one part, and for a folder of one file, that is exact.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onepeace.index.calibrate import Banks

if TYPE_CHECKING:
    from onepeace.index.query import Part, QueryVector

LIKELY = 0.95
"""Match above which a hit is likely what was meant: 19 of 20 unrelated queries find nothing as near."""
POSSIBLE = 2 / 3
"""Match from which it is possible: two of three."""
RELEVANT = 1 / 3
"""Where no hit has this much, nothing relevant was found: two of three unrelated queries find something nearer."""


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
            z (n,), how many deviations each is above the mean of the best scores of unrelated queries, and the match
            (n,) in 0..1, in the order of the cosines; the cosines themselves and None if a part has no bank.
        """
        unrelated = self._unrelated(query.parts, modality)
        if unrelated is None:
            return cosines, None
        whole = np.sum([part.weight * part.vector for part in query.parts], axis=0)
        scores = cosines * np.linalg.norm(whole)
        z = (scores - unrelated.mean()) / max(float(unrelated.std()), 1e-6)
        match = np.searchsorted(unrelated, scores) / len(unrelated)
        return z.astype(np.float32), match.astype(np.float32)

    def _unrelated(self, parts: "Sequence[Part]", modality: str) -> NDArray | None:
        """Best scores of unrelated queries of such parts, rising."""
        seen = [self.banks.seen(part.bank, modality) for part in parts]
        known = [one for one in seen if one is not None]
        if not known or len(known) < len(seen):
            return None
        count = max(len(best) for best, _ in known)
        mean, squares = np.zeros(count), np.zeros(count)
        for number, (part, (best, means)) in enumerate(zip(parts, known, strict=True)):
            drawn = np.random.default_rng(number).permutation(count) % len(best)  # parts that have nothing in common
            mean += part.weight * means[drawn]
            squares += np.square(part.weight * (best - means)[drawn])
        return np.sort(mean + np.sqrt(squares))
