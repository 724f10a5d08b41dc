"""Groups of files of an index: duplicates, named clusters, and a 2-D projection."""

import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onepeace.errors import UserError, need
from onepeace.index.calibrate import texts_of
from onepeace.index.content import map_content
from onepeace.index.copies import LOOKS, Look, Same
from onepeace.index.index import Index
from onepeace.index.items import Item

log = logging.getLogger(__name__)

NEIGHBOURS, NEAR = 24, 0.4
"""Maximum number of nearest neighbours that a file is compared with, and their minimum cosine."""
COSINES, PAIRS = 1 << 23, 256
"""Cosines computed at once, and pairs of files compared at once."""
LARGEST_NUMBER = 50
"""Default maximum number of clusters."""
NAMES = 3
"""Number of names per cluster."""
BATCH = 4096
"""Files in a step of MiniBatchKMeans."""
SHRINKAGE = 10
"""Shrinkage of a kind's mean: the mean of all files counts as this many files of the kind."""
EDGE, MARGIN = 0.5, 0.96
"""Percent of the points clipped at each end of an axis, and share of the axis that the remaining points span."""


@dataclass(frozen=True)
class Member:
    """A file of a group or cluster."""

    item: Item
    similarity: float
    """Cosine to the first file of the group, or to the centre of the cluster."""
    is_exact: bool = False
    """Whether its content is identical to that of the first file."""


@dataclass(frozen=True)
class Group:
    """Duplicates, or a cluster of similar files."""

    members: tuple[Member, ...]
    """Duplicates: the largest picture or longest sound first. A cluster: the nearest to its centre first."""
    names: tuple[str, ...] = ()
    """Generic words nearest to the centre of a cluster, best first; empty if the index has no bank of words."""

    @property
    def surplus(self) -> int:
        """Bytes of all files but the first."""
        return sum(member.item.size for member in self.members[1:])


def duplicates(index: Index, *, exact: bool = False) -> list[Group]:
    """Groups of two or more files, those with the largest surplus first.

    Files with the same content are copies. The nearest of the other files in the vector space are read again and
    compared (copies.py). Each file of a group is a copy of the first, so that no chain of small changes joins different
    files.

    Args:
        exact: find only files with the same content; no file is read.
    """
    items, vectors = index.means()
    groups = []
    for kind in dict.fromkeys(item.modality for item in items):
        own = sorted((i for i, item in enumerate(items) if item.modality == kind), key=lambda i: _worth(items[i]))
        by_content: dict[object, list[int]] = defaultdict(list)
        for i in own:
            by_content[items[i].hash or items[i].path].append(i)
        heads = list(by_content.values())
        firsts = [places[0] for places in heads]
        near = [[i] for i in range(len(heads))]
        if kind in LOOKS and not exact:
            near = _near(index, [items[i] for i in firsts], vectors[firsts], *LOOKS[kind])
        for places in near:
            found = [(i, place == places[0]) for place in places for i in heads[place]]
            cosines = vectors[[i for i, _ in found]] @ vectors[found[0][0]]
            members = [Member(items[i], float(cosine), same) for (i, same), cosine in zip(found, cosines, strict=True)]
            if len(distinct := _distinct(members)) > 1:
                groups.append(Group(distinct))
    return sorted(groups, key=lambda group: (-group.surplus, group.members[0].item.path))


def _worth(item: Item) -> tuple[Any, ...]:
    """Sort key: the best copy first."""
    return -(item.width or 0) * (item.height or 0), -(item.duration or 0.0), -item.size, item.path


def _distinct(members: Sequence[Member]) -> tuple[Member, ...]:
    """Members of a group with one path per file on disk (no links), so that deleting the copies loses no file."""
    paths: dict[object, list[tuple[bool, int]]] = defaultdict(list)
    for place, member in enumerate(members):
        path = member.item.path
        try:
            status = os.stat(path)
        except OSError:  # gone, or a member of a shard
            paths[path].append((False, place))
        else:
            paths[status.st_dev, status.st_ino].append((os.path.realpath(path) != path, place))
    return tuple(members[min(same)[1]] for same in paths.values())  # the real path, if there is one


def _near(index: Index, items: Sequence[Item], vectors: np.ndarray, look: Look, same: Same) -> list[list[int]]:
    """Places of the files of each group, including groups of one file; ``items`` are in the order of preference."""
    pairs = _candidates(vectors)
    wanted = np.unique(pairs).tolist()
    read = map_content([items[i] for i in wanted], index.roots(), look)
    looks = {wanted[place]: seen for place, seen in read}
    if missing := [items[i].path for i in wanted if i not in looks]:
        which = missing[0] if len(missing) == 1 else f"{len(missing):,} {items[0].modality} files"
        log.warning("%s could not be compared: in a shard, gone, changed, silent or unreadable", which)
    pairs = pairs[[i in looks and j in looks for i, j in pairs.tolist()]]
    groups = []
    for members in connected(len(items), pairs[_compared(same, looks, pairs)].tolist()):
        while members:
            first, others = members[0], np.array(members[1:], np.int64)
            is_copy = _compared(same, looks, np.array([(first, other) for other in others]))
            groups.append([first, *others[is_copy].tolist()])
            members = others[~is_copy].tolist()
    return groups


def _candidates(vectors: np.ndarray) -> np.ndarray:
    """Pairs of rows (p, 2), the smaller first, where one row is among the nearest neighbours of the other."""
    count, found = len(vectors), [np.empty((0, 2), np.int64)]
    step, most = max(1, COSINES // max(1, count)), min(NEIGHBOURS, count - 1)
    for start in range(0, count if most > 0 else 0, step):
        cosines = vectors[start : start + step] @ vectors.T
        rows = np.arange(len(cosines))[:, None]
        cosines[rows[:, 0], start + rows[:, 0]] = -1
        nearest = np.argpartition(-cosines, most - 1, axis=1)[:, :most]
        row, column = np.nonzero(cosines[rows, nearest] >= NEAR)
        found.append(np.sort(np.stack([start + row, nearest[row, column]], axis=1), axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _compared(same: Same, looks: dict[int, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Whether the files of each pair of places are copies, (p,) bool."""
    found = [np.empty(0, np.bool_)]
    for start in range(0, len(pairs), PAIRS):
        first, second = pairs[start : start + PAIRS].T.tolist()
        found.append(same([looks[i] for i in first], [looks[j] for j in second]))
    return np.concatenate(found)


def connected(count: int, pairs: Iterable[Sequence[int]]) -> list[list[int]]:
    """Connected components of the graph with nodes 0 to ``count`` - 1 and these edges."""
    from networkx.utils import UnionFind

    sets = UnionFind(range(count))
    for pair in pairs:
        sets.union(*pair)
    return [sorted(members) for members in sets.to_sets()]


def clusters(index: Index, count: int | None = None) -> list[Group]:
    """Clusters of all files across modalities, largest first (deterministic).

    Args:
        count: number of clusters; None = the root of half the number of files, from 2 to LARGEST_NUMBER.

    Raises:
        UserError: there are fewer files than clusters, or scikit-learn is not installed.
    """
    sklearn = need("sklearn.cluster", "eval")
    items, vectors = index.means()
    number = count or max(2, min(LARGEST_NUMBER, round(math.sqrt(len(items) / 2))))
    if number > len(items):
        raise UserError(f"{index.folder}: {len(items)} files are too few for {number} clusters")
    centred = without_kind(vectors, np.array([item.modality for item in items]))
    fitted = sklearn.MiniBatchKMeans(number, random_state=0, n_init=3, batch_size=BATCH).fit(centred)
    words = index.banks.vectors.get("word", np.empty((0, index.embed_dim)))
    names = texts_of("word")[: len(words)]
    found = []
    for label in np.unique(fitted.labels_):
        own = np.flatnonzero(fitted.labels_ == label)
        middle = unit(centred[own].mean(axis=0, keepdims=True))[0]
        near = centred[own] @ middle
        members = tuple(Member(items[own[i]], float(near[i])) for i in np.argsort(-near, kind="stable"))
        nearest = np.argsort(-(words @ middle), kind="stable")[:NAMES]
        found.append(Group(members, tuple(names[place] for place in nearest)))
    return sorted(found, key=lambda cluster: -len(cluster.members))


def plane(vectors: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Projection of unit vectors (n, E) on their two principal components, (n, 2) float32 between 0 and 1.

    Deterministic. Vectors are centred by kind; otherwise pictures, sounds and texts would form islands.

    Args:
        kinds: (n,) kind of each vector, of any type.
    """
    centred = without_kind(vectors, kinds)
    centred -= centred.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-3:-1]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])  # an eigenvector's sign is arbitrary
    points = np.pad(centred @ axes, ((0, 0), (0, 2 - axes.shape[1])))  # E may be 1
    low, high = np.percentile(points, (EDGE, 100 - EDGE), axis=0)
    span = np.where(high > low, high - low, 1.0)
    return np.clip(0.5 + MARGIN * (points - (low + high) / 2) / span, 0.0, 1.0).astype(np.float32)


def without_kind(vectors: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Centre unit vectors (n, E) by kind and renormalise them: the means of pictures, sounds and texts differ, which
    would keep a picture of a dog away from its barking.

    Args:
        kinds: (n,) kind of each vector, of any type.
    """
    everything = vectors.mean(axis=0)
    centred = np.array(vectors)
    for kind in np.unique(kinds):
        own = kinds == kind
        centred[own] -= (vectors[own].sum(axis=0) + SHRINKAGE * everything) / (own.sum() + SHRINKAGE)
    return unit(centred)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalise rows to length 1; zero rows stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
