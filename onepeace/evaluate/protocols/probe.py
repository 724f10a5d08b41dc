"""Linear probe: a classifier that is trained on frozen vectors and tested on those of other items.

It is the logistic regression of scikit-learn (L-BFGS, at most 1,000 steps) on the unscaled unit vectors. Its inverse
regularisation C is the one of `STRENGTHS` with the best accuracy on every fifth training item of each class in a random
order, the first of ties; it is then trained on all training items with this C.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.errors import UserError, need
from onepeace.evaluate.metrics import Figure, best_ranks, hits
from onepeace.evaluate.protocols.protocol import EvaluationProtocol, Items, Labelled

STRENGTHS = tuple(10.0**power for power in range(-2, 6))
"""Values of C, larger than usual, as unit vectors are short."""
APART = 5
"""One in this many training items of a class is held out to choose C."""


@dataclass(frozen=True, kw_only=True)
class Probe(EvaluationProtocol):
    """Top-1 accuracy of a linear classifier on frozen vectors."""

    train: Items
    """The labelled items to learn from."""

    @property
    def sides(self) -> tuple[Items, ...]:
        return self, self.train

    def run(self, embedder: Any, root: Path) -> list[Figure]:
        train = self.train.encode_labelled(embedder, root)
        test = self.encode_labelled(embedder, root)
        return [probe(train, test, self.train.shards)]


def probe(train: Labelled, test: Labelled, where: str) -> Figure:
    """Top-1 accuracy of a linear classifier, and the C that was chosen.

    Args:
        train, test: the training items, and the items to classify.
        where: source of the training items, for messages.

    Raises:
        UserError: the training items have fewer than two classes.
    """
    if len(set(train.labels)) < 2:
        raise UserError("a probe needs at least two classes to learn from", where=where)
    classifier = _fitted(train)
    log_probabilities = classifier.predict_log_proba(test.vectors)
    right = hits(best_ranks(log_probabilities, test.labels[:, None] == classifier.classes_), 1)
    num_classes = len({*train.labels, *test.labels})
    return Figure.mean_of(
        f"linear probe top-1 of {num_classes}",
        right,
        chance=1 / num_classes,
        note=f"C = {classifier.best_params_['C']:g}",
    )


def _fitted(train: Labelled) -> Any:
    """A search over C (GridSearchCV) whose best classifier has been trained on all items."""
    linear_model = need("sklearn.linear_model", "eval")
    model_selection = need("sklearn.model_selection", "eval")
    exceptions = need("sklearn.exceptions", "eval")
    rows = np.arange(len(train.labels))
    held_out = every_fifth(train.labels)
    learned = np.setdiff1d(rows, held_out)
    if len(set(train.labels[learned])) < 2:
        learned = rows
    search = model_selection.GridSearchCV(
        linear_model.LogisticRegression(max_iter=1000),
        {"C": STRENGTHS},
        cv=[(learned, held_out)],
    )
    with warnings.catch_warnings():  # a fit that has not converged is judged as it is
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        search.fit(train.vectors.astype(np.float64), train.labels)
    return search


def every_fifth(labels: NDArray) -> NDArray[np.int64]:
    """Every fifth row of each class in a fixed random order; all rows if no class has five."""
    order = np.random.default_rng(0).permutation(len(labels))
    rows_by_class = []
    for label in np.unique(labels):
        rows_of_class = order[labels[order] == label]
        rows_by_class.append(rows_of_class[APART - 1 :: APART])
    rows = np.sort(np.concatenate(rows_by_class))
    if not rows.size:
        return np.arange(len(labels))
    return rows
