"""Scores of pictures, sounds and texts on one scale, and the match: whether a hit is likely to be right.

A cosine alone does not say that: it depends on the model, the kinds of query and file, and the size and nature of the
folder. So each folder is asked beforehand for some hundred things that nobody looks for in it (`Banks`): generic words
and sentences, which come with the package, and pictures and sounds, of which only the vectors come with a model
(calibrate.py). Nothing is fitted (docs/results/match.md).

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

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, one_line

if TYPE_CHECKING:
    from onepeace.index.query import QueryVector

MODALITIES = ("image", "audio", "text")
"""Modalities of items that queries are scored with."""
LIKELY = 0.95
"""Match above which a hit is likely what was meant: 19 of 20 unrelated queries find nothing as near."""
POSSIBLE = 2 / 3
"""Match from which it is possible: two of three."""
RELEVANT = 0.25
"""Where no hit has this much, nothing relevant was found: three of four unrelated queries find something nearer."""
SMALLEST = 1e-8
"""Lower bound of divisors."""
FORMAT = "2"
"""Version of `Banks.to_bytes`."""
SEEN = ("best", "squares", "sums", "counts")
"""Attributes of `Banks` that an index keeps."""
BLOCK = 1 << 14
"""Items compared at once: bounds the memory."""


def likelihood(match: float) -> str:
    """A match in a word."""
    return "likely" if match > LIKELY else "possible" if match >= POSSIBLE else "unlikely"


def falling(match: NDArray) -> NDArray:
    """Matches (n,) of a list in its order, each at most that of the hit above it."""
    return np.minimum.accumulate(match)


class Seen(NamedTuple):
    """Cosines of the n queries of a bank with the items of one modality in an index."""

    best: NDArray
    """(n,) highest of each query."""
    means: NDArray
    """(n,) mean of each query."""
    variance: float
    """Of all of them."""
    centre: NDArray
    """(E,) mean of the queries themselves."""


class Banks:
    """Vectors of unrelated queries by bank, and what they scored in one index.

    Attributes:
        vectors: bank -> (n, E) float32 unit rows; "BANK/MODALITY" takes the place of "BANK" for items of that modality.
        model: hash of the model that made them.
        best: (N, M) float32, best cosine of each query, bank after bank, with an item of each modality; -inf for none.
        squares: (N, M) float64, sum of the squares of those cosines.
        sums: (M, E) float64, sum of the items' vectors.
        counts: (M,) int64, number of items.
    """

    def __init__(self, vectors: Mapping[str, NDArray], model: str = "") -> None:
        self.vectors = {name: np.asarray(rows, np.float32) for name, rows in vectors.items()}
        self.model = model
        self._all = np.concatenate([*self.vectors.values()]) if vectors else np.empty((0, 0), np.float32)
        ends = np.cumsum([len(rows) for rows in self.vectors.values()]).tolist()
        self._place = {name: slice(a, b) for name, a, b in zip(self.vectors, [0, *ends], ends, strict=False)}
        self.start()

    def start(self) -> None:
        """Forget the index: no items yet."""
        self.best = np.full((len(self._all), len(MODALITIES)), -np.inf, np.float32)
        self.squares = np.zeros(self.best.shape)
        self.sums = np.zeros((len(MODALITIES), self._all.shape[1]))
        self.counts = np.zeros(len(MODALITIES), np.int64)
        self._seen: dict[tuple[str, str], Seen | None] = {}

    def add(self, vectors: NDArray, modalities: Sequence[str] | NDArray) -> None:
        """Add items: (n, E) unit rows and their modalities. Modalities that are not built in have no scores.

        Queries against items cost 2 N n E operations, about a second for 100,000 items of 256 numbers.
        """
        if not len(self._all):
            return
        self._seen, names = {}, np.asarray(modalities)
        for code, modality in enumerate(MODALITIES):
            own = np.flatnonzero(names == modality)
            for first in range(0, len(own), BLOCK):
                some = np.asarray(vectors[own[first : first + BLOCK]], np.float32)
                cosines = self._all @ some.T
                self.best[:, code] = np.maximum(self.best[:, code], cosines.max(axis=1))
                self.squares[:, code] += np.square(cosines).sum(axis=1)
                self.sums[code] += some.sum(axis=0, dtype=np.float64)
                self.counts[code] += len(some)

    def seen(self, bank: str, modality: str) -> Seen | None:
        """Scores of a bank with the items of a modality; None if there are no such queries or items."""
        if (bank, modality) not in self._seen:
            self._seen[bank, modality] = self._computed(bank, modality)
        return self._seen[bank, modality]

    def _computed(self, bank: str, modality: str) -> Seen | None:
        code = MODALITIES.index(modality) if modality in MODALITIES else None
        place = self._place.get(f"{bank}/{modality}", self._place.get(bank))
        if code is None or place is None or not self.counts[code]:
            return None
        queries = self._all[place]
        means = queries @ (self.sums[code] / self.counts[code]).astype(np.float32)
        squares = float(self.squares[place, code].mean()) / int(self.counts[code])
        return Seen(self.best[place, code], means, squares - float(means.mean()) ** 2, queries.mean(axis=0))

    def score(self, query: "QueryVector", modality: str, cosines: NDArray) -> tuple[NDArray, NDArray | None]:
        """z and match of the cosines (n,) of a query with items of one modality.

        Returns:
            z (n,) and the match (n,) in 0..1, in the order of the cosines; the cosines themselves and None if a part
            has no bank.
        """
        seen = [self.seen(part.bank, modality) for part in query.parts]
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

    @classmethod
    def load(cls, content: bytes | None, best: bytes | None = None) -> "Banks":
        """Read what `to_bytes` and `best_bytes` gave; None = no banks, no items.

        Raises:
            UserError: it is damaged or of another version.
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
                raise UserError(f"a calibration of another version; {again}")
            banks = cls({name: found[name] for name in json.loads(about["banks"])}, about["model"])
            if not np.isfinite(banks._all).all():
                raise ValueError("not all of its numbers are finite")
            seen = {} if best is None else load(best)
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"a calibration that is damaged or cut off ({one_line(error)}); {again}") from error
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


def _drawn(part: int, count: int) -> NDArray:
    """Order in which the unrelated queries of a part come, (count,) int: one of its own for each part."""
    return np.arange(count) if not part else np.random.default_rng(part).permutation(count)
