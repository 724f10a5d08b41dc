"""Scores of pictures, sounds and texts on one scale, and the match: whether a hit is likely to be right.

A cosine alone does not show this: its scale depends on the model, the modalities of query and file, and the size and
content of the folder. So each index is scored in advance against a few hundred unrelated queries (`Banks`): generic
words and sentences in the package, and pictures and sounds, whose vectors are stored with a model (calibrate.py).
Nothing is fitted (docs/results/match.md).

* The z-score ranks mixed lists: the standard deviations of a cosine above the mean of unrelated queries against files
  of the same kind.
* The match is displayed: the share of unrelated queries whose best hit of the same kind scores lower.

The two may order hits differently, so the match of a hit is capped at that of the hit above it (search.py).

A query of several parts is q = sum of w_p v_p. Unrelated queries of this form are not scored; their distribution is
derived from those of the parts. Their mean cosine is the sum of w_p r_p, with r_p the mean of part p. An excess e_p
over the mean for each part becomes sqrt(sum of w_p w_q e_p e_q a_pq) for the sum, as standard deviations add up, with
a_pq the cosine of two parts after subtracting the centres of their banks. This is applied to each quantile.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line

if TYPE_CHECKING:
    from onepeace.index.query import QueryVector

MODALITIES = ("image", "audio", "text")
"""Modalities of items that queries are scored against."""
LIKELY = 0.95
"""Match above which a hit is likely relevant: 19 of 20 unrelated queries find nothing as near."""
POSSIBLE = 0.7
"""Match from which a hit is possibly relevant: 7 of 10 unrelated queries find nothing as near."""
RELEVANT = 0.2
"""Match of the best hit below which nothing relevant was found: 4 of 5 unrelated queries do better."""
SMALLEST = 1e-8
"""Lower bound of divisors."""
FORMAT = "2"
"""Version of `Banks.to_bytes`."""
SEEN = ("best", "squares", "sums", "counts")
"""Attributes of `Banks` that an index stores."""
BLOCK = 1 << 14
"""Items compared at once: bounds the memory."""


def likelihood(match: float) -> str:
    """The match as a word."""
    return "likely" if match > LIKELY else "possible" if match >= POSSIBLE else "unlikely"


class BankScores(NamedTuple):
    """Cosines of the n queries of a bank with the items of one modality in an index."""

    best: NDArray
    """(n,) highest cosine of each query, ascending."""
    mean: float
    deviation: float
    centre: NDArray
    """(E,) mean of the query vectors."""


class Banks:
    """Vectors of unrelated queries by bank, and their scores in one index.

    Attributes:
        vectors: bank -> (n, E) float32 unit rows; "BANK/MODALITY" replaces "BANK" for items of that modality.
        model: hash of the model that encoded them.
        best: (N, M) float32, best cosine of each query, bank after bank, with the items of each modality; -inf if none.
        squares: (N, M) float64, sum of the squares of the cosines with all these items.
        sums: (M, E) float64, sum of the items' vectors.
        counts: (M,) int64, number of items.
    """

    def __init__(self, vectors: Mapping[str, NDArray], model: str = "") -> None:
        self.vectors = {name: np.asarray(rows, np.float32) for name, rows in vectors.items()}
        self.model = model
        self._all = np.concatenate([*self.vectors.values()]) if vectors else np.empty((0, 0), np.float32)
        ends = np.cumsum([len(rows) for rows in self.vectors.values()]).tolist()
        self._place = {name: slice(a, b) for name, a, b in zip(self.vectors, [0, *ends], ends, strict=False)}
        self.best = np.full((len(self._all), len(MODALITIES)), -np.inf, np.float32)
        self.squares = np.zeros(self.best.shape)
        self.sums = np.zeros((len(MODALITIES), self._all.shape[1]))
        self.counts = np.zeros(len(MODALITIES), np.int64)
        self._seen: dict[tuple[str, str], BankScores] = {}

    def add(self, vectors: NDArray, modalities: Sequence[str] | NDArray) -> None:
        """Add items: (n, E) unit rows and their modalities. Modalities that are not built in have no scores.

        Costs 2 N n E operations, about a second for 100,000 items of 256 dimensions.
        """
        self._seen.clear()
        if not len(self._all):
            return
        names = np.asarray(modalities)
        for code, modality in enumerate(MODALITIES):
            own = np.flatnonzero(names == modality)
            for first in range(0, len(own), BLOCK):
                some = np.asarray(vectors[own[first : first + BLOCK]], np.float32)
                cosines = self._all @ some.T
                self.best[:, code] = np.maximum(self.best[:, code], cosines.max(axis=1))
                self.squares[:, code] += np.square(cosines).sum(axis=1)
                self.sums[code] += some.sum(axis=0, dtype=np.float64)
                self.counts[code] += len(some)

    def seen(self, bank: str, modality: str) -> BankScores | None:
        """Scores of a bank against the items of a modality; None if there are no such queries or items."""
        place = self._place.get(f"{bank}/{modality}", self._place.get(bank))
        code = MODALITIES.index(modality) if modality in MODALITIES else None
        if place is None or code is None or not (count := int(self.counts[code])):
            return None
        if (bank, modality) not in self._seen:
            queries, best = self._all[place], np.sort(self.best[place, code])
            mean = float((queries @ (self.sums[code] / count).astype(np.float32)).mean())
            variance = float(self.squares[place, code].mean()) / count - mean**2
            self._seen[bank, modality] = BankScores(best, mean, max(variance, SMALLEST) ** 0.5, queries.mean(axis=0))
        return self._seen[bank, modality]

    def score(self, query: "QueryVector", modality: str, cosines: NDArray) -> tuple[NDArray, NDArray | None]:
        """z-scores and matches of the cosines (n,) of a query with items of one modality.

        Returns:
            z (n,) and the match (n,) in 0..1, in the order of the cosines; or the cosines themselves and None if a
            part has no bank.
        """
        parts = query.parts
        known = [one for part in parts if (one := self.seen(part.bank, modality))]
        if not known or len(known) < len(parts):
            return cosines, None
        best, mean, deviation, _ = known[0]
        if len(parts) > 1:
            weights, vectors = np.array([part.weight for part in parts]), np.stack([part.vector for part in parts])
            apart = vectors - np.stack([one.centre for one in known])
            apart /= np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), SMALLEST)
            agree = np.outer(weights, weights) * (apart @ apart.T)
            count, means = max(len(one.best) for one in known), np.array([one.mean for one in known])
            above = np.stack([np.quantile(one.best, np.linspace(0, 1, count)) for one in known]) - means[:, None]
            # Squared length of a sum of vectors with these lengths and cosines; rounding can make it negative.
            squares = [np.einsum("pn,pq,qn->n", e, agree, e) for e in (above, np.array([[o.deviation] for o in known]))]
            above, deviation = (np.sqrt(np.maximum(square, SMALLEST**2)) for square in squares)
            mean, cosines = weights @ means, cosines * np.linalg.norm(weights @ vectors)
            best = np.sort(mean + above)
        z, match = (cosines - mean) / deviation, np.searchsorted(best, cosines) / len(best)
        return z.astype(np.float32), match.astype(np.float32)

    @classmethod
    def load(cls, content: bytes | None, best: bytes | None = None) -> "Banks":
        """Load the output of `to_bytes` and `best_bytes`; None = no banks, no items.

        Raises:
            UserError: the content is damaged or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if content is None:
            return cls({})
        again = "make it again: onepeace calibrate INDEX --force"
        try:
            found = load(content)
            about = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
            if about.get("format") != FORMAT:
                raise UserError(f"the calibration has another format version; {again}")
            banks = cls({name: found[name] for name in json.loads(about["banks"])}, about["model"])
            if not np.isfinite(banks._all).all():
                raise ValueError("not all of its numbers are finite")
            seen = {} if best is None else load(best)
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"the calibration is damaged or cut off ({one_line(error)}); {again}") from error
        if "best" in seen and seen["best"].shape == banks.best.shape and seen["sums"].shape == banks.sums.shape:
            banks.best, banks.squares, banks.sums, banks.counts = (seen[name].copy() for name in SEEN)
        return banks

    def to_bytes(self) -> bytes:
        """Content of a calibration file: the vectors in float16, and the hash of the model."""
        from safetensors.numpy import save

        about = {"format": FORMAT, "model": self.model, "banks": json.dumps([*self.vectors])}
        return save({name: rows.astype(np.float16) for name, rows in self.vectors.items()}, about)

    def best_bytes(self) -> bytes:
        """Scores of the queries in one index, for `load`."""
        from safetensors.numpy import save

        return save({name: np.ascontiguousarray(getattr(self, name)) for name in SEEN})
