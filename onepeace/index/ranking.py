"""Scores of items for a query, pictures, sounds and texts in one list: what `search --rank` offers.

A ranking sees the cosines of a query with n items and, where it needs them, the items' modalities and statistics. The
statistics depend on the item alone: they are computed once, when it is added, and kept. The cosines may come from a
matrix product over everything, or from a nearest-neighbour structure for a few candidates.

A query of several parts is q = s / |s| with s = sum of w_p v_p. Its Z-norm is derived from the banks of its parts: as
draws of the parts' own modalities, independent of one another, s.x has the mean sum of w_p m_p.x and the variance sum
of w_p^2 x'C_p x, and |s|, which does not depend on the item, cancels out:

    z = (sum w_p v_p.x - sum w_p m_p.x) / sqrt(sum w_p^2 x'C_p x)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError
from onepeace.index.calibration import MODALITIES, Calibration, sigmoid

CHUNK = 1 << 16
"""Items whose statistics are computed at once."""
SMALLEST = 1e-6
"""Variance of an item's cosines that is counted at least, so that every score is finite."""
CANCELLED = 1e-4
"""Norm of a sum of unit vectors below which nothing but rounding is left of it."""


class PartVector(NamedTuple):
    """A text, picture or sound of a query."""

    modality: str
    vector: NDArray
    """(E,) unit vector."""
    weight: float = 1.0
    """Negative takes away."""


@dataclass(frozen=True)
class QueryVector:
    """A query as rankings see it."""

    vector: NDArray
    """(E,) unit vector: the weighted sum of its parts, renormalised."""
    norm: float
    """Length of that sum before."""
    weights: tuple[tuple[str, float], ...]
    """Modality and weight of each part."""

    @classmethod
    def of(cls, parts: Sequence[PartVector]) -> "QueryVector":
        """The query of one part or more; UserError when they cancel out."""
        total = np.sum([part.weight * np.asarray(part.vector, dtype=np.float64) for part in parts], axis=0)
        norm = float(np.linalg.norm(total))
        if norm < CANCELLED:
            raise UserError("the weighted parts of the query cancel out; choose other weights")
        return cls((total / norm).astype(np.float32), norm, tuple((part.modality, part.weight) for part in parts))


@dataclass(frozen=True)
class Pool:
    """What is known of n items besides their vectors."""

    codes: NDArray[np.integer]
    """(n,) modality of each, as its place in `MODALITIES`."""
    calibration: Calibration | None = None
    statistics: NDArray[np.float32] | None = None
    """(n, M, 2), from `statistics`."""

    @classmethod
    def of(cls, items: NDArray, codes: NDArray[np.integer], calibration: Calibration) -> "Pool":
        """That of vectors (n, E) whose statistics are computed now."""
        return cls(codes, calibration, statistics(items, codes, calibration))

    def take(self, rows: NDArray) -> "Pool":
        """The items of these numbers, or where a mask (n,) is true."""
        return Pool(self.codes[rows], self.calibration, None if self.statistics is None else self.statistics[rows])

    def known(self) -> tuple[Calibration, NDArray[np.float32]]:
        """Calibration and statistics, for the rankings that need them; UserError without."""
        if self.calibration is None or self.statistics is None:
            raise UserError("this ranking needs a calibration; make one with: onepeace calibrate MODEL, or rank raw")
        return self.calibration, self.statistics


Ranking = Callable[[QueryVector, NDArray, Pool], NDArray]
"""Query, its cosines (n,) with the items, and the items -> scores (n,), the highest first."""


def statistics(items: NDArray, codes: NDArray[np.integer], calibration: Calibration) -> NDArray[np.float32]:
    """(n, M, 2): `statistics_of` each of `MODALITIES` as that of the queries; NaN for those without a bank."""
    result = np.full((len(items), len(MODALITIES), 2), np.nan, dtype=np.float32)
    for query in calibration.banks:
        result[:, MODALITIES.index(query)] = statistics_of(query, items, codes, calibration)
    return result


def statistics_of(
    query: str, items: NDArray, codes: NDArray[np.integer], calibration: Calibration
) -> NDArray[np.float32]:
    """(n, 2): m.x and 1 / sigma of each item for the bank of queries of one modality.

    Sigma^2 is the share `Calibration.own` of the item's own x'Cx, and what is typical of its modality for the rest.

    Args:
        items: (n, E) unit rows, such as a memory map; read in chunks. A result depends on its own item alone.
        codes: (n,) their modalities.
    """
    result = np.empty((len(items), 2), dtype=np.float32)
    bank = calibration.bank(query)
    share, _, typical = _typical(calibration, query)
    for start in range(0, len(items), CHUNK):
        rows = slice(start, start + CHUNK)
        mean, variance = bank.statistics(np.asarray(items[rows]))
        kept = share[codes[rows]]
        variance = kept * variance + (1 - kept) * typical[codes[rows]]
        result[rows, 0] = mean
        result[rows, 1] = 1 / np.sqrt(np.maximum(variance, SMALLEST))
    return result


def _typical(calibration: Calibration, query: str) -> tuple[NDArray, NDArray, NDArray]:
    """By code of the item's modality: the share of its own statistics, typical mean, typical variance, each (M,).

    What is typical of a modality without a bank is not known: its items go by their own.
    """
    share, mean, variance = np.ones(len(MODALITIES)), np.zeros(len(MODALITIES)), np.zeros(len(MODALITIES))
    for code, modality in enumerate(MODALITIES):
        if (query, modality) in calibration.typical:
            share[code] = calibration.own
            mean[code], variance[code] = calibration.typical[query, modality]
    return share, mean, variance


def means(query: str, pool: Pool) -> NDArray:
    """(n,) what the Z-norm takes from the items' cosines with a query of this modality."""
    calibration, known = pool.known()
    calibration.bank(query)
    share, typical, _ = _typical(calibration, query)
    return share[pool.codes] * known[:, MODALITIES.index(query), 0] + ((1 - share) * typical)[pool.codes]


def scores(ranking: str, query: QueryVector, items: NDArray, pool: Pool) -> NDArray:
    """(n,) scores of items (n, E), unit rows, by a ranking of `RANKINGS`."""
    return RANKINGS[ranking](query, items @ query.vector, pool)


def raw(query: QueryVector, cosines: NDArray, pool: Pool) -> NDArray:
    """The cosines themselves."""
    return cosines


def znorm(query: QueryVector, cosines: NDArray, pool: Pool) -> NDArray:
    """How many deviations a cosine is above what generic queries of the query's modality have with the item."""
    _, known = pool.known()
    mean, variance = np.zeros(len(cosines)), np.zeros(len(cosines))
    for modality, weight in query.weights:
        mean += weight * means(modality, pool)
        variance += np.square(weight / known[:, MODALITIES.index(modality), 1])
    return (query.norm * cosines - mean) / np.sqrt(variance)


def centred(query: QueryVector, cosines: NDArray, pool: Pool) -> NDArray:
    """The cosine of q - g_q and x - g_x, each g the mean of its own modality (GR-CLIP, arXiv 2507.19054).

    Of a query of several parts, the weighted sum of their means is taken away. Nothing is computed from the vectors of
    the items: their products with the means are their statistics.
    """
    calibration, known = pool.known()
    means = np.stack([calibration.bank(modality).mean for modality, _ in query.weights]).astype(np.float64)
    weights = np.array([weight for _, weight in query.weights])
    without = query.norm * query.vector.astype(np.float64) - weights @ means
    columns = [MODALITIES.index(modality) for modality, _ in query.weights]
    products = query.norm * cosines - known[:, columns, 0] @ weights  # of `without` with the items
    result = np.empty(len(cosines))
    for code in np.unique(pool.codes):
        own = pool.codes == code
        mean = calibration.bank(MODALITIES[code]).mean.astype(np.float64)
        lengths = np.sqrt(np.maximum(1 - 2 * known[own, code, 0] + mean @ mean, 1e-12))
        result[own] = (products[own] - without @ mean) / lengths
    return result / max(float(np.linalg.norm(without)), 1e-12)


def per_modality(query: QueryVector, cosines: NDArray, pool: Pool) -> NDArray:
    """The best of each modality first, then the second of each: 1 / (rank among its own, moved by the cosine).

    Whether a modality has anything that fits plays no part; what is equally far down its own list goes by cosine.
    """
    ranks = np.empty(len(cosines))
    for code in np.unique(pool.codes):
        own = np.flatnonzero(pool.codes == code)
        ranks[own[np.argsort(-cosines[own], kind="stable")]] = np.arange(1, len(own) + 1)
    return 1 / (ranks + (1 - cosines) / 2)


RANKINGS: dict[str, Ranking] = {"znorm": znorm, "raw": raw, "centred": centred, "per-modality": per_modality}
"""The first is the default."""


MEANT = 5
"""Files of a collection that a query is taken to mean, where nobody knows better: a caption means one, the name of a
kind of thing many."""
PRIORS = 1e-3, 0.05
"""Bounds of the share of a collection that a query is taken to mean."""


def prior_of(count: int) -> float:
    """The share of so many files that a query is taken to mean. The more there are, the better the best of those it
    does not mean: of a hundred thousand the first has a z above 4 by chance."""
    return float(np.clip(MEANT / max(count, 1), *PRIORS))


def match(query: QueryVector, z: NDArray, pool: Pool, prior: float | None = None) -> NDArray[np.float64]:
    """(n,) how likely each item is what the query means, 0..1; NaN where nothing is known of these modalities.

    Nobody has pairs of composed queries and what they mean. The logits of the parts' own fits, each taken at the z of
    the whole query, are averaged by the size of the parts' weights: exact for parts of one modality, and otherwise
    between what its parts alone would say.

    Args:
        z: (n,) the items' scores by `znorm`, also where another ranking orders them.
        prior: see `Calibration.probability`.
    """
    calibration, _ = pool.known()
    sizes = np.abs([weight for _, weight in query.weights])
    result = np.full(len(z), np.nan)
    for code in np.unique(pool.codes):
        fits = [calibration.platt.get((modality, MODALITIES[code])) for modality, _ in query.weights]
        if all(fits):
            own = pool.codes == code
            logits = [fit.logit(z[own], prior) for fit in fits if fit is not None]
            result[own] = sigmoid(np.average(logits, axis=0, weights=sizes))
    return result


def fold(query: QueryVector) -> NDArray[np.float32]:
    """(E,): what the Z-norm of a query whose parts are of one modality is a multiple of, (x . fold - m.x) / sigma.

    The sum of the weights must be above 0.
    """
    return (query.norm / sum(weight for _, weight in query.weights) * query.vector).astype(np.float32)
