"""Files of an index that are copies of one another: the same content, or nearly the same in another format or size.

Contents are compared by their hashes. Near copies are near in the space of the model; thoroughly, also pictures of
which a drawing of 8 x 9 pixels is nearly the same (difference hash), as small copies are seen differently by a model.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.index.content import each
from onepeace.index.index import Index
from onepeace.index.means import file_means
from onepeace.index.store import Item

THRESHOLDS = {"image": 0.95, "audio": 0.97, "video": 0.97}
"""Cosines from which on files of a kind count as near copies; texts have only copies of the same content.

With the bundled model, of 1,481 different pictures (photographs and clip art, 559,962 pairs) 7
pairs are that near, clip art and pictures of one thing; of 400 sounds (79,800 pairs) 10, of one recording each. Of
copies of 17 photographs are missed: JPEG (quality 75) 0, WebP 1; half the size PNG 0, JPEG 4; a quarter of it 8; cut
by 4 and 10 % 1 and 7. Of 20 sounds as MP3, Vorbis, WAV or at another rate 0, without their first 0.2 s 9."""
LOOK, BITS = 0.7, 6
"""Thoroughly: the cosine that is asked for of pictures whose difference hashes differ in at most so many of 64 bits. Of
the pictures above 7 more pairs are found then, all clip art; of the copies none are missed but 5, cropped by 10 %."""
PLAIN = 8
"""A hash with fewer bits of one kind is that of an empty picture, and says nothing."""
CELLS = 1 << 25
"""Cosines that are computed at once."""


@dataclass(frozen=True)
class Copy:
    """A file of a group."""

    item: Item
    similarity: float
    """Cosine to the first of the group."""
    is_exact: bool
    """Whether its content is that of the first."""


@dataclass(frozen=True)
class Group:
    """Files that are copies of one another: the largest picture, or the longest sound, first."""

    copies: tuple[Copy, ...]

    @property
    def surplus(self) -> int:
        """Bytes of all but the first."""
        return sum(copy.item.size for copy in self.copies[1:])


def duplicates(
    index: Index, thresholds: Mapping[str, float] = THRESHOLDS, thorough: bool = False, progress: bool | None = None
) -> list[Group]:
    """The groups of two or more files, those with the largest surplus first.

    Each file of a group is a near copy of its first one, so that no chain of small changes joins different files.

    Args:
        thresholds: by kind of file; kinds that are not named have only copies of the same content.
        thorough: read every picture again, and compare them as they look.
        progress: True or False; None = on a terminal.
    """
    items, vectors = file_means(index)
    groups = []
    for kind in dict.fromkeys(item.modality for item in items):
        own = [i for i, item in enumerate(items) if item.modality == kind]
        exact = _same_content(items, own)
        heads = sorted(exact, key=lambda i: _worth(items[i]))
        looks = _looks([items[i] for i in heads], progress) if thorough and kind == "image" else None
        for near in _near(vectors[heads], thresholds.get(kind), looks):
            first = heads[near[0]]
            copies = [
                Copy(items[i], float(vectors[first] @ vectors[i]), j == near[0]) for j in near for i in exact[heads[j]]
            ]
            if len(copies) > 1:
                groups.append(Group(tuple(copies)))
    return sorted(groups, key=lambda group: (-group.surplus, group.copies[0].item.path))


def _worth(item: Item) -> tuple[Any, ...]:
    """For sorting: the best copy first."""
    return -(item.width or 0) * (item.height or 0), -(item.duration or 0.0), -item.size, item.path


def _same_content(items: Sequence[Item], own: Iterable[int]) -> dict[int, list[int]]:
    """The places of the first files of each content, and of all with it."""
    found: dict[object, list[int]] = defaultdict(list)
    for i in sorted(own, key=lambda i: _worth(items[i])):
        found[items[i].hash or items[i].path].append(i)
    return {places[0]: places for places in found.values()}


def _near(vectors: np.ndarray, threshold: float | None, looks: np.ndarray | None) -> list[list[int]]:
    """Places of the files of each group, also of those with one file; ``vectors`` in the order of preference."""
    count = len(vectors)
    if threshold is None:
        return [[i] for i in range(count)]
    groups, taken = [], np.zeros(count, bool)
    step = max(1, CELLS // max(1, count))
    for start in range(0, count, step):
        block = slice(start, min(start + step, count))
        cosines = vectors[block] @ vectors[start:].T
        alike = cosines >= threshold
        if looks is not None:
            alike |= (cosines >= LOOK) & (looks[block] @ looks[start:].T >= looks.shape[1] - 2 * BITS)
        for i in range(start, block.stop):
            if not taken[i]:
                others = start + np.flatnonzero(alike[i - start])
                others = others[(others > i) & ~taken[others]]
                taken[others] = True
                groups.append([i, *others.tolist()])
    return groups


def _looks(items: Sequence[Item], progress: bool | None) -> np.ndarray:
    """(n, 64) float32 of 1 and -1: difference hashes; zeros of pictures that are plain, or not there any more."""
    looks = np.zeros((len(items), 64), np.float32)
    for i, look in each(items, _look, progress):
        looks[i] = look
    return looks


def _look(value: Path | bytes | str) -> np.ndarray:
    from PIL import Image

    from onepeace.processors import ImageProcessor

    image = ImageProcessor(size=32).load(value)
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), np.int16)
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    is_plain = min(bits.sum(), (~bits).sum()) < PLAIN
    return np.zeros(64, np.float32) if is_plain else np.where(bits, 1, -1).astype(np.float32)
