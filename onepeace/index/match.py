"""The match of a file for a query: whether it is likely to be right; and the order of a list of all kinds of files.

A cosine alone does not show this: its scale depends on the model, the modalities of query and file, and the size and
content of the folder. So it is compared with the cosines of unrelated queries in the same index (banks.py). Nothing is
fitted (docs/results/match.md).

* z: the standard deviations of a cosine above the mean of unrelated queries against files of the same modality.
* match: the share of unrelated queries whose best hit of the same modality scores lower. If unrelated queries rarely
  find a modality first, its best hits are low by nature (a few texts among many pictures, or sounds if one searches by
  a picture), and a chance hit would look rare. So the match is then mixed, by how rarely they do, with the share of
  unrelated queries whose best hit of the leading modality, the one they find first most often, has a lower z.

Both depend on the query, the file and the index, but not on filters and other hits. A list is ordered by the match as a
word, then as a number; weak files by z (`worth`).

A query of several parts is q = sum of w_p v_p. Unrelated queries of this form are not scored; their distribution is
derived from those of the parts. Their mean cosine is the sum of w_p r_p, with r_p the mean of part p. An excess e_p
over the mean for each part becomes sqrt(sum of w_p w_q e_p e_q a_pq) for the sum, as standard deviations add up, with
a_pq the cosine of two parts after subtracting the centres of their banks. This is applied to each quantile.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from onepeace.index.banks import MODALITIES, Banks, BankScores

if TYPE_CHECKING:
    from onepeace.index.query import EncodedPart, QueryVector

LIKELY = 0.95
"""Match from which a hit is likely relevant: 19 of 20 unrelated queries find nothing as near."""
POSSIBLE = 0.7
"""Match from which a hit is possibly relevant: 7 of 10 unrelated queries find nothing as near."""
RELEVANT = 0.2
"""Match of the best hit below which nothing relevant was found: 4 of 5 unrelated queries do better."""
WEAK = "weak"
WORDS = (WEAK, "possible", "likely")
SMALLEST = 1e-8
"""Lower bound of divisors."""


def level(matches: NDArray, lifted: NDArray | bool = False) -> NDArray:
    """Place of each match in `WORDS`, one higher if it is lifted."""
    levels = np.add(matches >= POSSIBLE, matches >= LIKELY, dtype=np.int8)
    return np.minimum(levels + lifted, len(WORDS) - 1)


def worth(matches: NDArray, z_scores: NDArray, levels: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Keys by which hits are compared: by level; likely and possible ones by the match, then by z.

    Weak ones are compared by z: what their matches say is mostly which kind of file they are of.

    Returns:
        The last key first, as `numpy.lexsort` takes them.
    """
    return z_scores, np.where(levels > 0, matches, 0.0), levels


class Scale:
    """What unrelated queries of the same form as a query find in an index."""

    def __init__(self, banks: Banks, query: "QueryVector") -> None:
        self._unrelated: dict[str, BankScores] = {}  # by modality of the items
        for modality in MODALITIES:
            unrelated = _unrelated(banks, query.parts, modality)
            if unrelated is not None:
                self._unrelated[modality] = unrelated
        self._length = _length_of_sum(query.parts)
        self._best_z: dict[str, NDArray] = {}
        for modality, scores in self._unrelated.items():
            self._best_z[modality] = (scores.best - scores.mean) / scores.deviation
        first_shares = _first_shares(self._best_z)
        self._leading = max(first_shares, key=first_shares.__getitem__, default="")
        self._reliance: dict[str, float] = {}
        for modality, share in first_shares.items():
            self._reliance[modality] = share / first_shares[self._leading]

    def score(self, modality: str, cosines: NDArray) -> tuple[NDArray, NDArray | None]:
        """z-scores and matches of the cosines (n,) of the query with items of one modality.

        Returns:
            z (n,) and the match (n,) in 0..1, in the order of the cosines; or the cosines themselves and None if a
            part of the query has no bank.
        """
        unrelated = self._unrelated.get(modality)
        if unrelated is None:
            return cosines, None
        cosines = cosines.astype(np.float64) * self._length
        z_scores = (cosines - unrelated.mean) / unrelated.deviation
        matches = _share_below(unrelated.best, cosines)
        reliance = self._reliance[modality]
        if reliance < 1:
            matches_by_z = _share_below(self._best_z[self._leading], z_scores)
            matches = reliance * matches + (1 - reliance) * matches_by_z
        return z_scores, matches


def _share_below(ascending: NDArray, values: NDArray) -> NDArray:
    """Share of the ascending numbers that are below each value."""
    return np.searchsorted(ascending, values) / len(ascending)


def _first_shares(best_z: Mapping[str, NDArray]) -> dict[str, float]:
    """Share of the unrelated queries whose first hit, by z, is of each modality.

    The modalities are taken to be independent, as each may have unrelated queries of its own.
    """
    shares = {}
    for modality, z_scores in best_z.items():
        is_first = np.ones(len(z_scores))
        for other, other_z_scores in best_z.items():
            if other != modality:
                is_first *= (np.searchsorted(other_z_scores, z_scores) + 0.5) / len(other_z_scores)
        shares[modality] = float(is_first.mean())
    return shares


def _unrelated(banks: Banks, parts: "Sequence[EncodedPart]", modality: str) -> BankScores | None:
    """Scores of unrelated queries of the form of the parts; None if a part has no bank, or there are no items."""
    scores_by_part = []
    for part in parts:
        scores = banks.scores(part.bank, modality)
        if scores is None:
            return None
        scores_by_part.append(scores)
    if len(parts) == 1:
        return scores_by_part[0]
    return _scores_of_sum(parts, scores_by_part)


def _scores_of_sum(parts: "Sequence[EncodedPart]", unrelated: Sequence[BankScores]) -> BankScores:
    """Scores of unrelated queries that are sums like those of the parts; see the head of the file."""
    weights = np.array([part.weight for part in parts])
    vectors = np.stack([part.vector for part in parts])
    centres = np.stack([scores.centre for scores in unrelated])
    directions = vectors - centres
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), SMALLEST)
    agreement = np.outer(weights, weights) * (directions @ directions.T)
    quantiles = np.linspace(0, 1, max(len(scores.best) for scores in unrelated))
    excess = np.stack([np.quantile(scores.best, quantiles) - scores.mean for scores in unrelated])
    deviations = np.array([[scores.deviation] for scores in unrelated])
    mean = float(weights @ np.array([scores.mean for scores in unrelated]))
    return BankScores(
        best=np.sort(mean + _combined(excess, agreement)),
        mean=mean,
        deviation=float(_combined(deviations, agreement)[0]),
        centre=weights @ centres,
    )


def _combined(excess: NDArray, agreement: NDArray) -> NDArray:
    """(n,) length of a sum of vectors with lengths ``excess`` (P, n) and weighted cosines ``agreement`` (P, P)."""
    squares = np.einsum("pn,pq,qn->n", excess, agreement, excess)
    return np.sqrt(np.maximum(squares, SMALLEST**2))  # rounding can make it negative


def _length_of_sum(parts: "Sequence[EncodedPart]") -> float:
    """Length of the weighted sum of the parts, by which the query vector was divided."""
    if len(parts) == 1:  # weights of single parts change nothing
        return 1.0
    weighted = [part.weight * part.vector for part in parts]
    return float(np.linalg.norm(np.sum(weighted, axis=0)))
