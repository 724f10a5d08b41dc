"""Order of training data: which shards a lane reads in an epoch, and in which order their samples come.

Everything is a function of numbers: the seed of run and source name, the epoch, the lane, and the sizes of shards.
"""

from collections.abc import Sequence
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]

ORDER, VARY, MASK, SHARDS = range(4)
"""Independent random streams: samples of a window, augmentation of an item, its masks, shards of an epoch."""
MAX_LANES = 64
"""Maximum number of lanes, if a recipe does not say: each process that shares a lane lists all of its samples."""
ROUNDING = 1e-9
"""Rounding error allowed in the product of a size and a weight."""


def fetches(lanes: int, machines: int) -> float:
    """How often a shard is fetched in an epoch: once by each machine that shares its lane.

    Lanes and machines both cut a batch into equal parts; a lane is shared wherever two parts of machines meet in it.
    """
    return (lanes + machines - gcd(lanes, machines)) / lanes


def default_lanes(batch_size: int, shards: int, machines: int) -> int:
    """Number of lanes: of the divisors of the batch up to 64, or to the number of machines, and up to that of shards,
    the largest with the fewest fetches."""
    limit = min(max(MAX_LANES, machines), shards)
    divisors = [lanes for lanes in range(1, limit + 1) if batch_size % lanes == 0]
    return min(divisors, key=lambda lanes: (fetches(lanes, machines), -lanes))


@lru_cache(maxsize=4)
def _epoch_order(seed: tuple[int, ...], epoch: int, shards: int) -> Numbers:
    rng = np.random.default_rng([*seed, SHARDS, epoch])
    return rng.permutation(shards)


def lane_shards(seed: Sequence[int], epoch: int, lane: int, lanes: int, shards: int) -> list[int]:
    """Numbers of the shards of a lane in the order of an epoch: every shard is in one lane."""
    order = _epoch_order(tuple(seed), epoch, shards)
    return order[lane::lanes].tolist()


def num_drawn(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """Minimum number of samples drawn from sources of these sizes."""
    total = 0
    for size, weight in zip(sizes, weights, strict=True):
        total += int(size * weight + ROUNDING)
    return total


def draw_order(
    sizes: Sequence[int],
    weights: Sequence[float],
    run: int,
    rng: np.random.Generator,
) -> Numbers:
    """Random order of the samples of several sources, numbered source after source.

    A sample of a source with weight w occurs floor(w) or ceil(w) times, at random. With ``run`` above 1, ``run``
    consecutive samples are from one source, where possible: negatives of one kind are harder. Samples that do not fill
    the last run are dropped.
    """
    full: list[Numbers] = []
    left_over: list[Numbers] = []
    first = 0
    for size, weight in zip(sizes, weights, strict=True):
        numbers = first + _repeated(size, weight, rng)
        end = len(numbers) - len(numbers) % run
        full.append(numbers[:end])
        left_over.append(numbers[end:])
        first += size
    # Full runs of each source and mixed runs of what is left over, in random order.
    mixed = rng.permutation(np.concatenate(left_over))
    full.append(mixed[: len(mixed) - len(mixed) % run])
    runs = np.concatenate(full).reshape(-1, run)
    return rng.permutation(runs).reshape(-1)


def _repeated(size: int, weight: float, rng: np.random.Generator) -> Numbers:
    """The numbers 0 to ``size - 1`` in random order, each as often as the weight says."""
    order = rng.permutation(size)
    whole = int(weight)
    expected = (weight - whole) * size
    extra = int(expected)
    if expected > extra:  # rounded at random, so that a small window does not always lose its fraction
        extra += int(rng.random() < expected - extra)
    numbers = np.tile(np.arange(size), whole)
    return rng.permutation(np.concatenate([numbers, order[:extra]]))
