"""What a model's cosines are like before anybody searches: how near an item is to any query, and how near is a match.

Cosines of different pairs of modalities have different offsets and spreads, and some items are near to everything. A
bank of generic queries of one modality tells both for every item x: the mean m.x and the variance x'Cx of its cosines
with them, from the mean m and covariance C of the bank's vectors. Speaker verification calls the score that they
standardise Z-norm (Auckenthaler, Carey, Lloyd-Thomas, "Score normalization for text-independent speaker verification
systems", 2000). Pairs that belong together then say which score makes a match likely (Platt, "Probabilistic outputs for
support vector machines", 1999).

`fitting.py` makes a calibration of vectors, `ranking.py` ranks with it. It ships in the model folder.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onepeace.errors import UserError, one_line
from onepeace.files.atomic import write_atomic

FILE = "calibration.safetensors"
"""Its name in a model folder."""
FORMAT = 1
MODALITIES = ("image", "audio", "text")
"""The number of a modality, wherever numbers stand for them, is its place here."""
MIN_BANK = 30
"""Vectors that a bank has at least; the deviations that so few give are 13 % off, as 1 / sqrt(2 n) says."""
TOLERANCE = 1e-4
"""Variance that may be wrong along any direction, as a share of a bank's whole variance."""
OWN = 0.25
"""See `Calibration.own`; taken where no pairs are there to choose it by."""


@dataclass(frozen=True)
class Bank:
    """Mean and covariance of the unit vectors of generic queries of one modality.

    The covariance is F'F + rest * I (Tipping and Bishop, "Probabilistic principal component analysis", 1999), with as
    few rows of F as `TOLERANCE` allows: the variance of a model with 256 numbers lies in about 50 directions, so the
    file is a fifth as large and the statistics of items take a fifth of the time. Covariances without such directions
    keep all their rows and are exact.
    """

    mean: NDArray[np.float32]
    """(E,)"""
    factor: NDArray[np.float32]
    """F, (R, E)."""
    rest: float
    """Variance along every direction that F does not tell."""
    count: int
    """Vectors it was made of."""

    @classmethod
    def of(cls, vectors: NDArray, weights: NDArray | None = None) -> "Bank":
        """The bank of vectors (n, E), each with its weight (n,) above 0 or all with the same.

        Raises:
            UserError: fewer vectors than `MIN_BANK`, NaN among them, or all of them the same.
        """
        n, width = vectors.shape
        if n < MIN_BANK:
            raise UserError(f"a bank of {n} vectors is too small; give at least {MIN_BANK}")
        if not np.isfinite(vectors).all():
            raise UserError("the vectors of a bank have NaN or infinite numbers")
        vectors = vectors.astype(np.float64)
        mean = np.average(vectors, axis=0, weights=weights)
        values, directions = np.linalg.eigh(np.cov(vectors.T, aweights=weights).reshape(width, width))
        values, directions = np.maximum(values[::-1], 0), directions[:, ::-1]  # the largest first
        total = values.sum()
        if total < 1e-9:
            raise UserError(f"the {n} vectors of a bank are all the same; give items that differ")
        for rank in range(width):
            rest = float(values[rank:].mean())
            if max(values[rank] - rest, rest - values[-1]) <= TOLERANCE * total:
                break
        else:
            rank, rest = width, 0.0
        factor = (directions[:, :rank] * np.sqrt(values[:rank] - rest)).T
        return cls(mean.astype(np.float32), factor.astype(np.float32), rest, n)

    def statistics(self, items: NDArray) -> tuple[NDArray, NDArray]:
        """Mean and variance (n,) of the cosines that unit vectors `items` (n, E) have with queries like the bank's."""
        return items @ self.mean, np.square(items @ self.factor.T).sum(axis=1) + self.rest

    def draw(self, count: int, random: np.random.Generator) -> NDArray[np.float32]:
        """(count, E): unit vectors like those of the bank, by its mean and covariance."""
        around = random.standard_normal((count, len(self.factor))) @ self.factor
        around += math.sqrt(self.rest) * random.standard_normal((count, len(self.mean)))
        vectors = self.mean + around
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def typical(self, items: "Bank") -> tuple[float, float]:
        """The mean of both `statistics` over items like those of another bank."""
        factor, other, mean = (part.astype(np.float64) for part in (self.factor, items.factor, items.mean))
        squares = np.square(factor @ other.T).sum() + items.rest * np.square(factor).sum()  # trace of C C_items
        squares += self.rest * (np.square(other).sum() + items.rest * len(mean))
        offset = np.square(factor @ mean).sum() + self.rest * (mean @ mean)
        return float(self.mean @ mean), float(squares + offset)


@dataclass(frozen=True)
class Platt:
    """How likely a score z is that of a match: P = 1 / (1 + exp(-(a z + b)))."""

    a: float
    b: float
    prior: float
    """Share of matches among all pairs of a query and an item for which P is right: 0.01 where one item in a hundred
    is what a query means."""
    queries: int
    """Held-out queries it was fitted on."""
    error: float = math.nan
    """Expected calibration error on other held-out queries, matches and others weighing the same; NaN: not measured."""

    @classmethod
    def fit(cls, scores: ArrayLike, matches: ArrayLike, weights: ArrayLike, queries: int = 0) -> "Platt | None":
        """The weighted maximum likelihood fit to scores (n,), 0/1 matches (n,) and positive weights (n,).

        The prior is the matches' share of the weights. Targets are Platt's, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), so
        that scores which a threshold separates do not drive a to infinity. Returns None when matches do not score
        higher than others: then there is nothing to tell them by.
        """
        z, y, w = (np.asarray(values, dtype=np.float64) for values in (scores, matches, weights))
        w = w / w.sum()
        prior = float(w @ y)
        num = y.sum()
        targets = np.where(y > 0, (num + 1) / (num + 2), 1 / (len(y) - num + 2))
        design = np.stack([z, np.ones_like(z)])
        theta = np.array([0.0, _logit(prior)])
        loss = _loss(theta, design, targets, w)
        for _ in range(50):
            p = sigmoid(theta @ design)
            curvature = (design * (w * p * (1 - p))) @ design.T + 1e-12 * np.eye(2)
            step = np.linalg.solve(curvature, design @ (w * (p - targets)))
            while (new := _loss(theta - step, design, targets, w)) > loss + 1e-12:  # Newton may step too far
                step /= 2
            theta, loss = theta - step, new
            if np.abs(step).max() < 1e-7:
                break
        a, b = map(float, theta)
        return cls(a, b, prior, queries) if a > 0 else None

    def logit(self, scores: ArrayLike, prior: float | None = None) -> NDArray[np.float64]:
        """ln(P / (1 - P)) of scores; another prior moves it by the difference of the two priors' own logits."""
        shift = 0.0 if prior is None else _logit(prior) - _logit(self.prior)
        return self.a * np.asarray(scores, dtype=np.float64) + self.b + shift

    def probability(self, scores: ArrayLike, prior: float | None = None) -> NDArray[np.float64]:
        """P of scores, in 0..1."""
        return sigmoid(self.logit(scores, prior))


@dataclass(frozen=True)
class Calibration:
    """The banks and fits of one model."""

    banks: Mapping[str, Bank]
    """By modality of the query. Their means are also what the ranking `centred` takes from queries and from items."""
    platt: Mapping[tuple[str, str], Platt] = field(default_factory=dict)
    """By modality of the query and of the item; pairs of modalities without held-out pairs are not in it."""
    own: float = OWN
    """How much of an item's statistics are its own, 0 to 1; the rest is what is typical of its modality.

    1 is Z-norm as published, which also pulls down items that are near to everything; where the bank is not quite like
    the queries it costs more than it gives. At 0 the order inside one modality is that of the cosines."""
    model: str = ""
    """`fingerprint` of the model (onepeace/hub/fingerprint.py); any name for vectors of elsewhere."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """For people, as JSON: how the banks were made, of what, when."""

    @property
    def embed_dim(self) -> int:
        """Width E of the vectors."""
        return len(next(iter(self.banks.values())).mean)

    @cached_property
    def typical(self) -> dict[tuple[str, str], tuple[float, float]]:
        """`Bank.typical` by modality of the query and of the item, where both have a bank."""
        return {
            (query, item): own.typical(other) for query, own in self.banks.items() for item, other in self.banks.items()
        }

    def bank(self, modality: str) -> Bank:
        """The bank of queries of a modality; UserError names those there are."""
        if modality not in self.banks:
            raise UserError(
                f"the calibration has no bank of {modality}, only of {', '.join(self.banks)}; "
                f"give {modality} items to onepeace calibrate, or rank raw"
            )
        return self.banks[modality]

    def probability(
        self, scores: ArrayLike, query: str, item: str, prior: float | None = None
    ) -> NDArray[np.float64] | None:
        """How likely items of modality `item` with these z scores are what a query of modality `query` means.

        Args:
            prior: share of matches to expect, in (0, 1); by default that of the fit. In a collection of n items of
                which one is looked for, 1 / n keeps the promise that half of what is shown at 0.5 is right.

        Returns:
            Numbers in 0..1, or None where no pairs of these modalities were there to learn it from.
        """
        fit = self.platt.get((query, item))
        return None if fit is None else fit.probability(scores, prior)

    def save(self, path: Path) -> None:
        """Write the file, all at once; OSError when it cannot be written."""
        from safetensors.numpy import save

        # safetensors writes an array as it lies in memory, and reads the bytes of a transposed one in the wrong order.
        tensors = {f"mean.{key}": np.ascontiguousarray(bank.mean) for key, bank in self.banks.items()}
        tensors |= {f"factor.{key}": np.ascontiguousarray(bank.factor) for key, bank in self.banks.items()}
        header = {
            "format": FORMAT,
            "model": self.model,
            "own": self.own,
            "banks": {key: {"rest": bank.rest, "count": bank.count} for key, bank in self.banks.items()},
            "platt": [{"query": query, "item": item, **_finite(fit)} for (query, item), fit in self.platt.items()],
            "about": dict(self.about),
        }
        with write_atomic(path) as temporary:
            temporary.write_bytes(save(tensors, {"calibration": json.dumps(header)}))

    @classmethod
    def load(cls, path: Path, *, embed_dim: int | None = None, model: str | None = None) -> "Calibration":
        """Read a file, or the one in a model folder.

        Args:
            embed_dim, model: width of the vectors and hash of the model that it has to be of; None: any.

        Raises:
            UserError: no such file; damaged or cut off; no calibration; of a newer format; of another model.
        """
        from safetensors import SafetensorError, safe_open

        path = path / FILE if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"{path}: no such file; make it with: onepeace calibrate MODEL SOURCE")
        again = "make it again: onepeace calibrate MODEL SOURCE --force"
        try:
            with safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {}).get("calibration")
                if text is None:
                    raise UserError(f"{path}: is no calibration; {again}")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            header = json.loads(text)
            if header["format"] != FORMAT:
                raise UserError(f"{path}: format {header['format']} is not the one this onepeace reads ({FORMAT})")
            banks = {
                key: Bank(
                    _checked(tensors[f"mean.{key}"]), _checked(tensors[f"factor.{key}"]), own["rest"], own["count"]
                )
                for key, own in header["banks"].items()
            }
            fits = {(fit.pop("query"), fit.pop("item")): Platt(**fit) for fit in header["platt"]}
            result = cls(banks, fits, float(header["own"]), header["model"], header["about"])
            _check_shapes(banks)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: damaged or cut off ({one_line(error)}); {again}") from error
        if embed_dim is not None and result.embed_dim != embed_dim:
            raise UserError(f"{path}: is for vectors of {result.embed_dim} numbers, these have {embed_dim}; {again}")
        if model is not None and result.model != model:
            raise UserError(f"{path}: is of the model {result.model}, not of {model}; {again}")
        return result


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def _checked(array: NDArray) -> NDArray[np.float32]:
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError("its numbers are not all finite float32")
    return array


def _check_shapes(banks: Mapping[str, Bank]) -> None:
    widths = {(bank.mean.ndim, bank.factor.ndim, bank.mean.shape[-1], bank.factor.shape[-1]) for bank in banks.values()}
    if len(widths) != 1 or (first := next(iter(widths)))[:2] != (1, 2) or first[2] != first[3]:
        raise ValueError("its banks do not fit together")


def _finite(fit: Platt) -> dict[str, float | int]:
    """The fields of a fit that JSON can hold."""
    return {name: value for name, value in vars(fit).items() if math.isfinite(value)}


def _logit(p: float) -> float:
    return math.log(p) - math.log1p(-p)


def _loss(theta: NDArray, design: NDArray, targets: NDArray, weights: NDArray) -> float:
    """Weighted cross-entropy of Platt's model."""
    x = theta @ design
    return float(weights @ (np.logaddexp(0, x) - targets * x))
