"""Makes a calibration of vectors, whichever model they are of; `onepeace calibrate` gets them from files.

Samples are dealt out once: half of them are the banks, a quarter is what the rest of the calibration is fitted on, and
a quarter what its match probabilities are checked on. Vectors without partners all go to the banks.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError
from onepeace.evaluate.ranked import ndcg
from onepeace.evaluate.reliability import Reliability
from onepeace.index.calibration import MODALITIES, OWN, Bank, Calibration, Platt
from onepeace.index.ranking import PartVector, Pool, QueryVector, scores

log = logging.getLogger(__name__)

MIN_QUERIES = 30
"""Held-out queries with a match that a fit, and a check of it, needs."""
MAX_QUERIES = 500
"""Queries of one modality that a fit or a check takes, drawn by chance: bounds its memory."""
OWN_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Values of `Calibration.own` that are tried; at the first the order inside one modality is that of the cosines."""
AT = 10
BANK, FIT, CHECK = range(3)
DEALT = (0.5, 0.75)
"""Shares of the samples at which the next of these parts begins."""
ALONE = -1
"""The group of a vector that is in no pair."""

Pair = tuple[str, str]
"""Modality of the query and of the item."""


class Vectors(NamedTuple):
    """Vectors of one modality."""

    vectors: NDArray
    """(n, E) unit rows."""
    samples: NDArray[np.int64]
    """(n,) number of the sample each is of: a picture and its captions are one."""
    groups: NDArray[np.int64]
    """(n,) those of one number belong together and match one another, in whatever modality; `ALONE`: in no pair."""
    weights: NDArray | None = None
    """(n,) how much each counts in the bank; None: all the same."""


class Fitted(NamedTuple):
    """A calibration, and how its match probabilities did on the pairs that were kept out for a check."""

    calibration: Calibration
    checks: dict[Pair, Reliability]
    """At the prior of the fit."""


def fit(found: Mapping[str, Vectors], *, prior: float, model: str, about: Mapping[str, Any]) -> Fitted:
    """The calibration of vectors by modality.

    Of each held-out query, its matches have the weight `prior` together and all other items 1 - `prior`, so a class of
    a hundred counts no more than a pair. A query is no item of its own search.

    Args:
        prior: share of matches that the probabilities are fitted for, in (0, 1).
        model, about: see `Calibration`.

    Raises:
        UserError: a bank that is too small, or whose vectors are all the same, with its modality.
    """
    parts = _deal(found)
    banks = {}
    for modality in (key for key in MODALITIES if key in found):
        vectors, _, _, weights = found[modality]
        inside = parts[modality] == BANK
        try:
            banks[modality] = Bank.of(vectors[inside], None if weights is None else weights[inside])
        except UserError as error:
            raise UserError(f"{modality}: {error}; half of all pairs are for the banks") from error
    calibration = Calibration(banks, {}, OWN, model, about)
    held_out = {}
    for pair in [(query, item) for query in banks for item in banks]:
        searches = [_searches(found, parts, pair, part) for part in (FIT, CHECK)]
        if len(searches[0].queries) >= MIN_QUERIES:
            held_out[pair] = searches
        elif searches[0].queries:
            log.info("%s to %s: %d held-out queries with a match, too few to fit", *pair, len(searches[0].queries))
    if held_out:
        calibration = replace(calibration, own=_own_share(calibration, [fit_on for fit_on, _ in held_out.values()]))
    fits, checks = {}, {}
    for pair, (fit_on, check_on) in held_out.items():
        own = Platt.fit(*fit_on.weighted(calibration, prior), len(fit_on.queries))
        if own is None:
            log.warning("%s to %s: matches score no higher than others; no match probability", *pair)
            continue
        if len(check_on.queries) >= MIN_QUERIES:
            z, matches, weights = check_on.weighted(calibration, prior)
            checks[pair] = Reliability.of(own.probability(z), matches, weights)
            # At a small prior nearly everything is near 0, and so is the error; where both weigh the same it shows.
            even = np.where(matches, weights / prior, weights / (1 - prior))
            own = replace(own, error=Reliability.of(own.probability(z, 0.5), matches, even).error)
        fits[pair] = own
    return Fitted(replace(calibration, platt=fits), checks)


def _deal(found: Mapping[str, Vectors]) -> dict[str, NDArray[np.int64]]:
    """BANK, FIT or CHECK for each vector, by modality; always the same for the same samples."""
    paired = np.unique(np.concatenate([own.samples[own.groups != ALONE] for own in found.values()]))
    dealt = np.random.default_rng(0).permutation(len(paired))
    place = np.searchsorted(np.array(DEALT) * len(paired), dealt, side="right")
    result = {}
    for modality, own in found.items():
        inside = own.groups != ALONE
        result[modality] = np.full(len(own.samples), BANK)
        result[modality][inside] = place[np.searchsorted(paired, own.samples[inside])]
    return result


class _Searches(NamedTuple):
    """Held-out queries of one modality among held-out items of one."""

    queries: list[QueryVector]
    items: NDArray
    """(n, E)"""
    codes: NDArray[np.int64]
    """(n,)"""
    others: NDArray[np.bool_]
    """(q, n) all items but the query itself."""
    matches: NDArray[np.bool_]
    """(q, n) some of the others, and not all."""

    def z(self, calibration: Calibration) -> list[NDArray]:
        """The scores of each query's others."""
        pool = Pool.of(self.items, self.codes, calibration)
        return [
            scores("znorm", query, self.items, pool)[own] for query, own in zip(self.queries, self.others, strict=True)
        ]

    def truths(self) -> list[NDArray[np.bool_]]:
        """Which of each query's others are matches."""
        return [row[own] for row, own in zip(self.matches, self.others, strict=True)]

    def weighted(self, calibration: Calibration, prior: float) -> tuple[NDArray, NDArray[np.bool_], NDArray]:
        """(z, is a match, weight) of all pairs of a query and another item, each (m,)."""
        weights = [np.where(own, prior / own.sum(), (1 - prior) / (~own).sum()) for own in self.truths()]
        return np.concatenate(self.z(calibration)), np.concatenate(self.truths()), np.concatenate(weights)


def _searches(found: Mapping[str, Vectors], parts: Mapping[str, NDArray[np.int64]], pair: Pair, part: int) -> _Searches:
    """At most `MAX_QUERIES` of a part, those that have a match there."""
    queries, items = (found[key] for key in pair)
    drawn, inside = (np.flatnonzero((parts[key] == part) & (found[key].groups != ALONE)) for key in pair)
    drawn = np.random.default_rng(0).permutation(drawn)
    others = drawn[:, None] != inside if pair[0] == pair[1] else np.ones((len(drawn), len(inside)), dtype=bool)
    matches = (queries.groups[drawn][:, None] == items.groups[inside]) & others
    good = np.flatnonzero(matches.any(axis=1) & (others & ~matches).any(axis=1))[:MAX_QUERIES]
    return _Searches(
        [QueryVector.of([PartVector(pair[0], vector)]) for vector in queries.vectors[drawn[good]]],
        items.vectors[inside],
        np.full(len(inside), MODALITIES.index(pair[1])),
        others[good],
        matches[good],
    )


def _own_share(calibration: Calibration, held_out: Sequence[_Searches]) -> float:
    """The best of `OWN_SHARES` for the order inside one modality, among those that harm no pair of modalities.

    That is the mean NDCG over the pairs; a pair is harmed when its queries lose more than two standard errors.
    """
    gains = dict.fromkeys(OWN_SHARES, 0.0)
    for searches in held_out:
        truths = searches.truths()
        plain = np.zeros(len(truths))
        for share in OWN_SHARES:
            z = searches.z(replace(calibration, own=share))
            found = np.array([ndcg(row, own, AT) for row, own in zip(z, truths, strict=True)])
            plain = found if share == OWN_SHARES[0] else plain
            gain = found - plain
            harmed = gain.mean() < -2 * gain.std() / np.sqrt(len(gain))
            gains[share] += -np.inf if harmed else float(gain.mean())
    return max(gains, key=lambda share: gains[share])
