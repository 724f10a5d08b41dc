"""Order of training data: which shards a lane reads in an epoch, and in which order their samples come.

Everything is a function of numbers: the seed of run and source name, the epoch, the lane, and the sizes of shards.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ORDER, VARY, MASK, SHARDS = range(4)
"""Independent random streams: samples of a window, augmentation of an item, its masks, shards of an epoch."""
MAX_LANES = 64
"""Maximum number of lanes, if a recipe does not say: each process that shares a lane lists all of its samples."""


def default_lanes(batch_size: int, shards: int) -> int:
    """Number of lanes: the largest power of two that divides the batch and is neither above 64 nor above ``shards``."""
    lanes = 1
    while 2 * lanes <= min(MAX_LANES, shards) and batch_size % (2 * lanes) == 0:
        lanes *= 2
    return lanes


@lru_cache(maxsize=4)
def _epoch_order(seed: tuple[int, ...], epoch: int, shards: int) -> NDArray[np.int64]:
    return np.random.default_rng([*seed, SHARDS, epoch]).permutation(shards)


def lane_shards(seed: Sequence[int], epoch: int, lane: int, lanes: int, shards: int) -> list[int]:
    """Numbers of the shards of a lane in the order of an epoch: every shard is in one lane."""
    return _epoch_order(tuple(seed), epoch, shards)[lane::lanes].tolist()


def num_drawn(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """Minimum number of samples drawn from sources of these sizes."""
    return sum(int(size * weight + 1e-9) for size, weight in zip(sizes, weights, strict=True))


def draw_order(sizes: Sequence[int], weights: Sequence[float], run: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Random order of the samples of several sources, numbered source after source.

    A sample of a source with weight w occurs floor(w) or ceil(w) times, at random. With ``run`` above 1, ``run``
    consecutive samples are from one source, where possible: negatives of one kind are harder. Samples that do not fill
    the last run are dropped.
    """
    parts: list[NDArray[np.int64]] = []
    first = 0
    for size, weight in zip(sizes, weights, strict=True):
        parts.append(_repeated(first, size, weight, rng))
        first += size
    # Full runs of each source and mixed runs of what is left over, in random order.
    full: list[NDArray[np.int64]] = []
    left_over: list[NDArray[np.int64]] = []
    for part in parts:
        end = len(part) - len(part) % run
        full.append(part[:end])
        left_over.append(part[end:])
    rest = rng.permutation(np.concatenate(left_over))
    full.append(rest[: len(rest) - len(rest) % run])
    runs = np.concatenate(full).reshape(-1, run)
    return rng.permutation(runs).reshape(-1)


def _repeated(first: int, size: int, weight: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """The numbers from ``first`` on in random order, each as often as the weight says."""
    order = rng.permutation(size)
    numbers = np.tile(np.arange(first, first + size), int(weight))
    extra = weight % 1 * size
    count = int(extra)
    if extra > count:  # rounded at random, so that a small window does not always lose its fraction
        count += int(rng.random() < extra - count)
    return rng.permutation(np.concatenate([numbers, first + order[:count]]))
