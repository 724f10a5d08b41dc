"""Probes: classifiers that learn from frozen vectors of training items and are asked about others.

The linear probe is the logistic regression of scikit-learn (L-BFGS, at most 1,000 steps) on the unit vectors as they
are. Its inverse regularisation C is one of `STRENGTHS`: the one with the best accuracy on a part of the training data,
the first of equals; then all training data are learned from with it. That part is a fold where the set has folds, else
every fifth item of each class in a random order. kNN lets the k nearest training items vote, each with weight
exp(cosine / 0.07), as DINO does (arXiv 2104.14294).
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.data.sample import Sample
from onepeace.datasets.layout import Record
from onepeace.errors import UserError, need
from onepeace.evaluate.metrics import Figure, best_ranks, hits
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items

STRENGTHS = tuple(10.0**power for power in range(-2, 6))
"""Unit vectors are short, so C is larger than for vectors of other lengths."""
TEMPERATURE = 0.07
NEIGHBOURS = 20
"""The k of kNN."""
APART = 5
"""One in so many training items of a class helps to choose C."""


class Part(NamedTuple):
    """One training and test set, as numbers of rows."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    """The rows of `train` that C is chosen on."""
    test: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Probe(EvaluationProtocol):
    """Top-1 accuracy of classifiers on frozen vectors; without `train` of a cross-validation over the set's folds."""

    train: Items | None = None
    """The labelled items to learn from. None: the other folds of the set itself, fold by fold (as of ESC-50)."""

    @property
    def sides(self) -> tuple[Items, ...]:
        return (self,) if self.train is None else (self, self.train)

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        samples = self.read_labelled(root)
        learned = [] if self.train is None else self.train.read_labelled(root)
        labels = np.array([sample.label for sample in (*samples, *learned)])
        if self.train is None:
            parts = list(folds(np.array([_fold(sample) for sample in samples])))
            vectors = self.encode(embedder, samples)
        else:
            rows = np.arange(len(samples), len(labels))
            parts = [Part(rows, rows[every_fifth(labels[rows])], np.arange(len(samples)))]
            vectors = np.concatenate([self.encode(embedder, samples), self.train.encode(embedder, learned)])
        return probe(vectors, labels, parts, self.place)


def probe(vectors: NDArray, labels: NDArray, parts: Sequence[Part], where: str) -> list[Figure]:
    """Top-1 accuracy of both classifiers on the test rows of all parts together.

    Args:
        vectors, labels: (N, E) unit vectors and (N,) class names of training and test items.
        parts: whose test rows do not overlap.
        where: source of the items, for messages.
    """
    for part in parts:
        if len(set(labels[part.train])) < 2:
            raise UserError(f"{where}: a probe needs at least two classes to learn from")
    classes, tested = len(set(labels)), np.concatenate([part.test for part in parts])
    figures = []
    for name, method in {"linear probe": _linear, f"{NEIGHBOURS}-NN": _knn}.items():
        ranks = np.empty(len(labels), dtype=np.int64)
        notes = []
        for part in parts:
            ranks[part.test], note = method(vectors, labels, part)
            notes.append(note)
        right = hits(ranks[np.sort(tested)], 1)
        note = f"{len(parts)} folds: {', '.join(notes)}" if len(parts) > 1 else notes[0]
        value = float(np.mean(right))
        figures.append(Figure(f"{name} top-1 of {classes}", value, 1 / classes, len(right), right, note=note))
    return figures


def _fold(sample: Sample) -> int:
    """The fold that a sample of a layout belongs to; UserError when the set has none."""
    if not isinstance(sample, Record) or "fold" not in sample.about:
        raise UserError(
            f"{sample.source}: {sample.key} has no fold; say what to learn from: train={{modality, shards}}"
        )
    return sample.about["fold"]


def folds(numbers: NDArray[np.int64]) -> Iterator[Part]:
    """For each fold of numbers (N,): its rows are the test, those of the next one choose C."""
    known = np.unique(numbers)
    if len(known) < 3:
        raise UserError(f"a cross-validation needs at least 3 folds; the set has {known.tolist()}")
    for test, following in zip(known, np.roll(known, -1), strict=True):
        yield Part(*(np.flatnonzero(rows) for rows in (numbers != test, numbers == following, numbers == test)))


def every_fifth(labels: NDArray) -> NDArray[np.int64]:
    """Every fifth row of each class in a random order that is always the same; all rows when no class has five."""
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = [order[labels[order] == label][APART - 1 :: APART] for label in np.unique(labels)]
    rows = np.sort(np.concatenate(chosen))
    return rows if rows.size else np.arange(len(labels))


def _linear(vectors: NDArray, labels: NDArray, part: Part) -> tuple[NDArray[np.int64], str]:
    """Ranks of the right classes of the test rows, and which C was chosen."""
    rest = np.setdiff1d(part.train, part.held_out)
    rest = rest if len(set(labels[rest])) > 1 else part.train
    right = []
    for strength in STRENGTHS:
        fitted = _fit(vectors[rest], labels[rest], strength)
        right.append((fitted.predict(vectors[part.held_out]) == labels[part.held_out]).mean())
    best = STRENGTHS[int(np.argmax(right))]
    fitted = _fit(vectors[part.train], labels[part.train], best)
    scores = fitted.predict_log_proba(vectors[part.test])
    return best_ranks(scores, labels[part.test], fitted.classes_), f"C = {best:g}"


def _fit(vectors: NDArray, labels: NDArray, strength: float) -> Any:
    convergence = need("sklearn.exceptions", "eval").ConvergenceWarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", convergence)  # a fit that is not finished is judged as it is
        regression = need("sklearn.linear_model", "eval").LogisticRegression(C=strength, max_iter=1000)
        return regression.fit(vectors.astype(np.float64), labels)


def _knn(vectors: NDArray, labels: NDArray, part: Part) -> tuple[NDArray[np.int64], str]:
    """Ranks of the right classes of the test rows, and how many neighbours voted."""
    number = min(NEIGHBOURS, len(part.train))
    classifier = need("sklearn.neighbors", "eval").KNeighborsClassifier(
        number, metric="cosine", weights=lambda distances: np.exp((1 - distances) / TEMPERATURE)
    )
    fitted = classifier.fit(vectors[part.train], labels[part.train])
    scores = fitted.predict_proba(vectors[part.test])
    return best_ranks(scores, labels[part.test], fitted.classes_), f"k = {number}"
