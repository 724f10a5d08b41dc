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
    from onepeace.index.query import EncodedPart, QueryVector

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
SCORES = ("best", "squares", "sums", "counts")
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
        self._rows: dict[str, slice] = {}  # of each bank in `_queries`
        first = 0
        for name, bank_vectors in self.vectors.items():
            self._rows[name] = slice(first, first + len(bank_vectors))
            first += len(bank_vectors)
        self._queries = np.concatenate([*self.vectors.values()]) if vectors else np.empty((0, 0), np.float32)
        num_queries, embed_dim = self._queries.shape
        self.best = np.full((num_queries, len(MODALITIES)), -np.inf, np.float32)
        self.squares = np.zeros((num_queries, len(MODALITIES)))
        self.sums = np.zeros((len(MODALITIES), embed_dim))
        self.counts = np.zeros(len(MODALITIES), np.int64)
        self._bank_scores: dict[tuple[str, str], BankScores] = {}

    def add(self, vectors: NDArray, modalities: Sequence[str] | NDArray) -> None:
        """Add items: (n, E) unit rows and their modalities. Modalities that are not built in have no scores.

        Costs 2 N n E operations, about a second for 100,000 items of 256 dimensions.
        """
        self._bank_scores.clear()
        if not len(self._queries):
            return
        modality_of_row = np.asarray(modalities)
        for code, modality in enumerate(MODALITIES):
            rows = np.flatnonzero(modality_of_row == modality)
            for first in range(0, len(rows), BLOCK):
                block = np.asarray(vectors[rows[first : first + BLOCK]], np.float32)
                cosines = self._queries @ block.T
                self.best[:, code] = np.maximum(self.best[:, code], cosines.max(axis=1))
                self.squares[:, code] += np.square(cosines).sum(axis=1)
                self.sums[code] += block.sum(axis=0, dtype=np.float64)
                self.counts[code] += len(block)

    def seen(self, bank: str, modality: str) -> BankScores | None:
        """Scores of a bank against the items of a modality; None if there are no such queries or items."""
        rows = self._rows.get(f"{bank}/{modality}", self._rows.get(bank))
        if rows is None or modality not in MODALITIES:
            return None
        code = MODALITIES.index(modality)
        count = int(self.counts[code])
        if not count:
            return None
        if (bank, modality) not in self._bank_scores:
            queries = self._queries[rows]
            mean_item = (self.sums[code] / count).astype(np.float32)
            mean = float((queries @ mean_item).mean())
            variance = float(self.squares[rows, code].mean()) / count - mean**2
            self._bank_scores[bank, modality] = BankScores(
                best=np.sort(self.best[rows, code]),
                mean=mean,
                deviation=max(variance, SMALLEST) ** 0.5,
                centre=queries.mean(axis=0),
            )
        return self._bank_scores[bank, modality]

    def score(self, query: "QueryVector", modality: str, cosines: NDArray) -> tuple[NDArray, NDArray | None]:
        """z-scores and matches of the cosines (n,) of a query with items of one modality.

        Returns:
            z (n,) and the match (n,) in 0..1, in the order of the cosines; or the cosines themselves and None if a
            part has no bank.
        """
        unrelated_by_part: list[BankScores] = []
        for part in query.parts:
            unrelated = self.seen(part.bank, modality)
            if unrelated is None:
                return cosines, None
            unrelated_by_part.append(unrelated)
        if not unrelated_by_part:
            return cosines, None
        unrelated = unrelated_by_part[0]
        if len(query.parts) > 1:
            unrelated = _scores_of_sum(query.parts, unrelated_by_part)
            cosines = cosines * _length_of_sum(query.parts)
        z_scores = (cosines - unrelated.mean) / unrelated.deviation
        matches = np.searchsorted(unrelated.best, cosines) / len(unrelated.best)
        return z_scores.astype(np.float32), matches.astype(np.float32)

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
        remedy = "make it again: onepeace calibrate INDEX --force"
        try:
            tensors = load(content)
            header_size = int.from_bytes(content[:8], "little")
            metadata = json.loads(content[8 : 8 + header_size]).get("__metadata__", {})
            if metadata.get("format") != FORMAT:
                raise UserError(f"the calibration has another format version; {remedy}")
            banks = cls({name: tensors[name] for name in json.loads(metadata["banks"])}, metadata["model"])
            if not np.isfinite(banks._queries).all():
                raise ValueError("not all of its numbers are finite")
            scores = {} if best is None else load(best)
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"the calibration is damaged or cut off ({one_line(error)}); {remedy}") from error
        if "best" in scores and scores["best"].shape == banks.best.shape and scores["sums"].shape == banks.sums.shape:
            for name in SCORES:
                setattr(banks, name, scores[name].copy())
        return banks

    def to_bytes(self) -> bytes:
        """Content of a calibration file: the vectors in float16, and the hash of the model."""
        from safetensors.numpy import save

        metadata = {"format": FORMAT, "model": self.model, "banks": json.dumps([*self.vectors])}
        return save({name: rows.astype(np.float16) for name, rows in self.vectors.items()}, metadata)

    def best_bytes(self) -> bytes:
        """Scores of the queries in one index, for `load`."""
        from safetensors.numpy import save

        return save({name: np.ascontiguousarray(getattr(self, name)) for name in SCORES})


def _scores_of_sum(parts: "Sequence[EncodedPart]", unrelated: Sequence[BankScores]) -> BankScores:
    """Scores of unrelated queries that are sums like those of the parts; see the head of the file."""
    weights = np.array([part.weight for part in parts])
    apart = np.stack([part.vector - scores.centre for part, scores in zip(parts, unrelated, strict=True)])
    apart /= np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), SMALLEST)
    agreement = np.outer(weights, weights) * (apart @ apart.T)
    quantiles = np.linspace(0, 1, max(len(scores.best) for scores in unrelated))
    excess = np.stack([np.quantile(scores.best, quantiles) - scores.mean for scores in unrelated])
    deviations = np.array([[scores.deviation] for scores in unrelated])
    mean = float(weights @ np.array([scores.mean for scores in unrelated]))
    return BankScores(
        best=np.sort(mean + _combined(excess, agreement)),
        mean=mean,
        deviation=float(_combined(deviations, agreement)[0]),
        centre=weights @ np.stack([scores.centre for scores in unrelated]),
    )


def _combined(excess: NDArray, agreement: NDArray) -> NDArray:
    """(n,) length of a sum of vectors with lengths ``excess`` (P, n) and weighted cosines ``agreement`` (P, P)."""
    squares = np.einsum("pn,pq,qn->n", excess, agreement, excess)
    return np.sqrt(np.maximum(squares, SMALLEST**2))  # rounding can make it negative


def _length_of_sum(parts: "Sequence[EncodedPart]") -> float:
    """Length of the weighted sum of the parts, which was divided by it."""
    return float(np.linalg.norm(np.sum([part.weight * part.vector for part in parts], axis=0)))
