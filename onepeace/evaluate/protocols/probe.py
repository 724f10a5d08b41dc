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
        train, test = (side.encode_labelled(embedder, root) for side in (self.train, self))
        return [probe(train, test, self.train.shards)]


def probe(train: Labelled, test: Labelled, where: str) -> Figure:
    """Top-1 accuracy of a linear classifier, and the C that was chosen.

    Args:
        train, test: the training items, and the items to classify.
        where: source of the training items, for messages.
    """
    if len(set(train.labels)) < 2:
        raise UserError(f"{where}: a probe needs at least two classes to learn from")
    held_out = every_fifth(train.labels)
    rest = np.setdiff1d(np.arange(len(train.labels)), held_out)
    rest = rest if len(set(train.labels[rest])) > 1 else np.arange(len(train.labels))
    regression = need("sklearn.linear_model", "eval").LogisticRegression(max_iter=1000)
    search = need("sklearn.model_selection", "eval").GridSearchCV(regression, {"C": STRENGTHS}, cv=[(rest, held_out)])
    with warnings.catch_warnings():  # a fit that has not converged is judged as it is
        warnings.simplefilter("ignore", need("sklearn.exceptions", "eval").ConvergenceWarning)
        search.fit(train.vectors.astype(np.float64), train.labels)
    right = hits(best_ranks(search.predict_log_proba(test.vectors), test.labels, search.classes_), 1)
    classes, note = len({*train.labels, *test.labels}), f"C = {search.best_params_['C']:g}"
    return Figure.mean_of(f"linear probe top-1 of {classes}", right, 1 / classes, note)


def every_fifth(labels: NDArray) -> NDArray[np.int64]:
    """Every fifth row of each class in a fixed random order; all rows if no class has five."""
    order = np.random.default_rng(0).permutation(len(labels))
    chosen = [order[labels[order] == label][APART - 1 :: APART] for label in np.unique(labels)]
    rows = np.sort(np.concatenate(chosen))
    return rows if rows.size else np.arange(len(labels))
