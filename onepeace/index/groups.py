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
from onepeace.index.content import map_content
from onepeace.index.copies import LOOKS, Look, Same
from onepeace.index.index import Index
from onepeace.index.items import Item
from onepeace.index.match import texts_of

log = logging.getLogger(__name__)

NEIGHBOURS = 24
"""Maximum number of nearest neighbours that a file is compared with."""
NEAR = 0.4
"""Their minimum cosine."""
COSINES = 1 << 23
"""Cosines computed at once."""
PAIRS = 256
"""Pairs of files compared at once."""
LARGEST_NUMBER = 50
"""Default maximum number of clusters."""
NAMES = 3
"""Number of names per cluster."""
BATCH = 4096
"""Files in a step of MiniBatchKMeans."""
SHRINKAGE = 10
"""Shrinkage of a kind's mean: the mean of all files counts as this many files of the kind."""
EDGE = 0.5
"""Percent of the points clipped at each end of an axis."""
MARGIN = 0.96
"""Share of the axis that the remaining points span."""


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
    for kind in dict.fromkeys(item.kind for item in items):
        contents = _by_content(items, kind)
        firsts = [numbers[0] for numbers in contents]
        groups_of_contents = [[position] for position in range(len(contents))]  # positions in `contents`
        if kind in LOOKS and not exact:
            look, same = LOOKS[kind]
            first_items = [items[number] for number in firsts]
            groups_of_contents = _near(index, first_items, vectors[firsts], look, same)
        for positions in groups_of_contents:
            same_content = [contents[position] for position in positions]
            members = _distinct(_members(items, vectors, same_content))
            if len(members) > 1:
                groups.append(Group(members))
    return sorted(groups, key=lambda group: (-group.surplus, group.members[0].item.path))


def _by_content(items: Sequence[Item], kind: str) -> list[list[int]]:
    """Numbers of the files of a kind that have the same content, for each content; the best file first."""
    numbers = [number for number, item in enumerate(items) if item.kind == kind]
    numbers.sort(key=lambda number: _worth(items[number]))
    by_content: dict[object, list[int]] = defaultdict(list)
    for number in numbers:
        by_content[items[number].hash or items[number].path].append(number)
    return list(by_content.values())


def _members(
    items: Sequence[Item],
    vectors: np.ndarray,
    same_content: Sequence[Sequence[int]],
) -> list[Member]:
    """Members of a group: the files of each content, by number, the content of the first file first."""
    members = []
    for position, numbers in enumerate(same_content):
        cosines = vectors[numbers] @ vectors[same_content[0][0]]
        for number, cosine in zip(numbers, cosines.tolist(), strict=True):
            members.append(Member(item=items[number], similarity=cosine, is_exact=position == 0))
    return members


def _worth(item: Item) -> tuple[Any, ...]:
    """Sort key: the best copy first."""
    num_pixels = (item.width or 0) * (item.height or 0)
    seconds = item.duration or 0.0
    return -num_pixels, -seconds, -item.size, item.path


def _distinct(members: Sequence[Member]) -> tuple[Member, ...]:
    """Members of a group with one path per file on disk (no links), so that deleting the copies loses no file."""
    by_file: dict[object, list[tuple[bool, int]]] = defaultdict(list)  # (is a link, position)
    for position, member in enumerate(members):
        path = member.item.path
        try:
            status = os.stat(path)
        except OSError:  # gone, or a member of a shard
            by_file[path].append((False, position))
        else:
            is_link = os.path.realpath(path) != path
            by_file[status.st_dev, status.st_ino].append((is_link, position))
    positions = [min(links)[1] for links in by_file.values()]  # the real path, if there is one
    return tuple(members[position] for position in positions)


def _near(
    index: Index,
    items: Sequence[Item],
    vectors: np.ndarray,
    look: Look,
    same: Same,
) -> list[list[int]]:
    """Positions of the files of each group, including groups of one file; ``items`` are in the order of preference."""
    pairs = _candidates(vectors)
    looks = _looks(index, items, np.unique(pairs).tolist(), look)
    pairs = pairs[[first in looks and second in looks for first, second in pairs.tolist()]]
    copies = pairs[_compared(same, looks, pairs)]
    groups = []
    for members in connected(len(items), copies.tolist()):
        while members:  # each group is of copies of its first file
            first = members[0]
            remaining = np.array(members[1:], np.int64)
            pairs_of_first = np.array([(first, other) for other in remaining])
            is_copy = _compared(same, looks, pairs_of_first)
            groups.append([first, *remaining[is_copy].tolist()])
            members = remaining[~is_copy].tolist()
    return groups


def _looks(
    index: Index,
    items: Sequence[Item],
    positions: Sequence[int],
    look: Look,
) -> dict[int, np.ndarray]:
    """Looks of the files at some positions, without those that cannot be read, by position."""
    looks = {}
    to_read = [items[position] for position in positions]
    for number, value in map_content(to_read, index.roots(), look):
        looks[positions[number]] = value
    missing = [items[position] for position in positions if position not in looks]
    if missing:
        files = missing[0].path if len(missing) == 1 else f"{len(missing):,} {missing[0].kind} files"
        log.warning("%s could not be compared: in a shard, gone, changed, silent or unreadable", files)
    return looks


def _candidates(vectors: np.ndarray) -> np.ndarray:
    """Pairs of rows (p, 2), the smaller first, where one row is among the nearest neighbours of the other."""
    count = len(vectors)
    num_neighbours = min(NEIGHBOURS, count - 1)
    if num_neighbours < 1:
        return np.empty((0, 2), np.int64)
    step = max(1, COSINES // count)
    blocks = []
    for start in range(0, count, step):
        cosines = vectors[start : start + step] @ vectors.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -1
        nearest = np.argpartition(-cosines, num_neighbours - 1, axis=1)[:, :num_neighbours]
        row, column = np.nonzero(cosines[rows[:, None], nearest] >= NEAR)
        pairs = np.stack([start + row, nearest[row, column]], axis=1)
        blocks.append(np.sort(pairs, axis=1))
    return np.unique(np.concatenate(blocks), axis=0)


def _compared(same: Same, looks: dict[int, np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """Whether the files of each pair of positions are copies, (p,) bool."""
    is_copy = np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), PAIRS):
        block = slice(start, start + PAIRS)
        first_positions, second_positions = pairs[block].T.tolist()
        first = [looks[position] for position in first_positions]
        second = [looks[position] for position in second_positions]
        is_copy[block] = same(first, second)
    return is_copy


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
    with index.reading() as state:
        items, vectors = state.means()
        words = state.banks.vectors.get("word", np.empty((0, state.embed_dim)))
    default = round(math.sqrt(len(items) / 2))
    number = count or max(2, min(LARGEST_NUMBER, default))
    if number > len(items):
        raise UserError(f"{len(items)} files are too few for {number} clusters", where=index.folder)
    centred = without_kind(vectors, np.array([item.kind for item in items]))
    estimator = sklearn.MiniBatchKMeans(number, random_state=0, n_init=3, batch_size=BATCH)
    fitted = estimator.fit(centred)
    names_of_words = texts_of("word")
    groups = []
    for label in np.unique(fitted.labels_):
        rows = np.flatnonzero(fitted.labels_ == label)
        centre = unit(centred[rows].mean(axis=0, keepdims=True))[0]
        cosines = centred[rows] @ centre
        best_first = np.argsort(-cosines, kind="stable")
        members = []
        for place in best_first:
            members.append(Member(item=items[rows[place]], similarity=float(cosines[place])))
        nearest_words = np.argsort(-(words @ centre), kind="stable")[:NAMES]
        names = [names_of_words[place] for place in nearest_words]
        groups.append(Group(tuple(members), tuple(names)))
    return sorted(groups, key=lambda group: -len(group.members))


def plane(vectors: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Projection of unit vectors (n, E) on their two principal components, (n, 2) float32 between 0 and 1.

    Deterministic. Vectors are centred by kind; otherwise pictures, sounds and texts would form islands.

    Args:
        kinds: (n,) kind of each vector, of any type.
    """
    centred = without_kind(vectors, kinds)
    centred -= centred.mean(axis=0)
    _, eigenvectors = np.linalg.eigh(centred.T @ centred)
    axes = eigenvectors[:, :-3:-1]
    largest = np.abs(axes).argmax(axis=0)
    axes *= np.sign(axes[largest, np.arange(axes.shape[1])])  # an eigenvector's sign is arbitrary
    points = centred @ axes
    low, high = np.percentile(points, (EDGE, 100 - EDGE), axis=0)
    span = np.where(high > low, high - low, 1.0)
    middle = (low + high) / 2
    return np.clip(0.5 + MARGIN * (points - middle) / span, 0.0, 1.0).astype(np.float32)


def without_kind(vectors: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Centre unit vectors (n, E) by kind and renormalise them: the means of pictures, sounds and texts differ, which
    would keep a picture of a dog away from its barking.

    Args:
        kinds: (n,) kind of each vector, of any type.
    """
    everything = vectors.mean(axis=0)
    centred = np.array(vectors)
    for kind in np.unique(kinds):
        is_of_kind = kinds == kind
        total = vectors[is_of_kind].sum(axis=0) + SHRINKAGE * everything
        centred[is_of_kind] -= total / (is_of_kind.sum() + SHRINKAGE)
    return unit(centred)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Normalise rows to length 1; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
