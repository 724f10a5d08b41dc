"""Groups of files that are alike, named by the words that the model finds nearest to them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import numpy as np

from onepeace.errors import UserError, need
from onepeace.index.index import Index
from onepeace.index.means import file_means, unit, without_kind
from onepeace.index.store import Item

LARGEST_NUMBER = 50
"""Clusters that are made of many files, unless a number is asked for."""
SUGGESTED = 3
"""Names of a cluster: its own, and the next nearest."""
BATCH = 4096
"""Files in a step of MiniBatchKMeans."""

EncodeText = Callable[[list[str]], Any]


@dataclass(frozen=True)
class Member:
    """A file of a cluster."""

    item: Item
    similarity: float
    """Cosine to the middle of the cluster."""


@dataclass(frozen=True)
class Cluster:
    """Files that are alike."""

    members: tuple[Member, ...]
    """Nearest to the middle first."""
    names: tuple[str, ...] = ()
    """Its name, which no other cluster has, and others that are near; none without words."""


def clusters(
    index: Index,
    count: int | None = None,
    names: Sequence[str] | None = None,
    encode_text: EncodeText | None = None,
) -> list[Cluster]:
    """The clusters of all files, of pictures and sounds together, the largest first; always the same ones.

    Args:
        count: how many; None = the root of half the number of files, at most LARGEST_NUMBER.
        names: words to name them by; None = those that come with the package.
        encode_text: of the model that made the vectors, gives unit vectors (n, E); None = no names.

    Raises:
        UserError: no files or one, fewer files than clusters, or scikit-learn is not installed.
    """
    sklearn = need("sklearn.cluster", "eval")
    items, vectors = file_means(index)
    if len(items) < 2:
        raise UserError(f"{index.store.folder}: 1 file in it; clusters need at least 2")
    number = count or min(LARGEST_NUMBER, round(math.sqrt(len(items) / 2)))
    if number > len(items):
        raise UserError(f"{index.store.folder}: {len(items)} files make no {number} clusters; give a smaller number")
    centred = without_kind(vectors, np.array([item.modality for item in items]))
    fitted = sklearn.MiniBatchKMeans(number, random_state=0, n_init=3, batch_size=BATCH).fit(centred)
    found, middles = [], []
    for label in np.unique(fitted.labels_):
        own = np.flatnonzero(fitted.labels_ == label)
        middle = unit(centred[own].mean(axis=0, keepdims=True))[0]
        near = centred[own] @ middle
        order = np.argsort(-near, kind="stable")
        found.append(Cluster(tuple(Member(items[own[i]], float(near[i])) for i in order)))
        middles.append(middle)
    if encode_text is not None:
        chosen = default_names() if names is None else list(dict.fromkeys(names))
        found = _named(found, np.array(middles), chosen, encode_text)
    return sorted(found, key=lambda cluster: -len(cluster.members))


def default_names() -> list[str]:
    """Some 500 everyday words for what pictures show and sounds are of.

    They were chosen for this package and are part of it; no list of a data set was copied.
    """
    return resources.files("onepeace.index").joinpath("names.txt").read_text(encoding="utf-8").splitlines()


def _named(
    found: Sequence[Cluster], middles: np.ndarray, names: Sequence[str], encode_text: EncodeText
) -> list[Cluster]:
    """The clusters with names that suit them best in sum, no name twice while there are others.

    A cluster is compared with the sentences for the kind that most of its files are of.
    """
    from scipy.optimize import linear_sum_assignment  # comes with scikit-learn

    from onepeace.embed.zero_shot import TEMPLATES, prototypes

    kinds = np.array(["audio" if _is_of_sounds(cluster) else "image" for cluster in found])
    scores = np.empty((len(found), len(names)), np.float32)
    for kind in np.unique(kinds):
        words = prototypes(encode_text, names, TEMPLATES[kind]).numpy()
        scores[kinds == kind] = middles[kinds == kind] @ words.T
    order = np.argsort(-scores, axis=1, kind="stable")
    own = order[:, 0].copy()
    clusters_with_name, chosen = linear_sum_assignment(scores, maximize=True)
    own[clusters_with_name] = chosen
    named = []
    for cluster, first, others in zip(found, own.tolist(), order.tolist(), strict=True):
        best = [first, *(other for other in others if other != first)][:SUGGESTED]
        named.append(replace(cluster, names=tuple(names[name] for name in best)))
    return named


def _is_of_sounds(cluster: Cluster) -> bool:
    return 2 * sum(member.item.modality == "audio" for member in cluster.members) > len(cluster.members)
