"""Vectors as points of a plane, near ones near one another, as far as two numbers can say it."""

from typing import Any

import numpy as np

from onepeace.errors import need
from onepeace.index.means import without_kind

EDGE = 0.5
"""Percent of the points at each end of an axis that lie outside of the frame of the others, or are drawn at it."""
MARGIN = 0.96
"""Part of each side that the frame takes."""


def plane(vectors: np.ndarray, kinds: np.ndarray, method: str = "pca") -> np.ndarray:
    """(n, 2) float32 between 0 and 1 of unit vectors (n, E); always the same points.

    What is the same in all files of one kind is left out, or pictures, sounds and texts were islands.

    Args:
        kinds: (n,) of any type.
        method: "pca" keeps the two directions of largest variance; "umap" (arXiv 1802.03426, the package umap-learn)
            keeps neighbours together, and takes minutes for 1e5 vectors.

    Raises:
        UserError: umap-learn is asked for and not installed.
    """
    centred = without_kind(vectors, kinds)
    if method == "umap" and len(centred) > 3:  # fewer points have no neighbours
        umap = need("umap", "map")
        options: dict[str, Any] = {"n_neighbors": min(15, len(centred) - 1), "min_dist": 0.1, "metric": "cosine"}
        points = umap.UMAP(random_state=0, n_jobs=1, init="pca", **options).fit_transform(centred)
    else:
        points = _principal(centred)
    return _framed(np.asarray(points, np.float32))


def _principal(vectors: np.ndarray) -> np.ndarray:
    """(n, 2): along the two eigenvectors of the covariance with the largest eigenvalues, each turned to its largest
    part, as their signs mean nothing."""
    centred = vectors - vectors.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    points = centred @ (axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]))
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))  # vectors may have one number only


def _framed(points: np.ndarray) -> np.ndarray:
    """Each axis stretched to 0..1, 0.5 the middle; the few points far outside come to its edge."""
    low, high = np.percentile(points, (EDGE, 100 - EDGE), axis=0)
    span = np.where(high > low, high - low, 1.0)
    return np.clip(0.5 + MARGIN * (points - (low + high) / 2) / span, 0.0, 1.0).astype(np.float32)
