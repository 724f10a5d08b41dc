"""Groups of batch rows of similar length, which are computed one after the other to save padding.

All numbers are on the CPU. Every function takes ``lengths`` (M, B), the tokens of each row in each of M modalities, and
returns arrays of row numbers; each row is in one group, and rows ascend within a group.
"""

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Numbers of batch rows, or of tokens of each row."""

SHARDED_GROUPS = 2
"""Number of groups of a pass whose weights are sharded: all processes must gather them equally often, whatever the
lengths of their own items."""


def padded_tokens(lengths: Rows, groups: list[Rows]) -> int:
    """Number of tokens with padding, if each group is padded to the longest of its rows in each modality."""
    return sum(len(rows) * int(lengths[:, rows].max(1).sum()) for rows in groups)


def by_length(lengths: Rows, max_padding: float) -> list[Rows]:
    """The fewest groups, found greedily, each with a share of padding of at most ``max_padding``; 1 = one group."""
    if max_padding >= 1:
        return [np.arange(lengths.shape[1])]
    rows = np.argsort(-lengths.sum(0), kind="stable")
    if len(lengths) == 1:
        groups = _fill(lengths[0], rows, max_padding)
    else:
        groups = _halve(lengths, rows, max_padding)
    return [np.sort(group) for group in groups]


def in_equal_parts(lengths: Rows, count: int) -> list[Rows]:
    """Up to ``count`` groups of about equal size: the longest rows, the next ones, and so on."""
    rows = np.argsort(-lengths.sum(0), kind="stable")
    groups = np.array_split(rows, min(count, len(rows)))
    return [np.sort(group) for group in groups]


def _fill(lengths: Rows, rows: Rows, max_padding: float) -> list[Rows]:
    """Fill groups from the longest row on, which makes the fewest groups."""
    groups = []
    start = 0
    total = 0
    descending = lengths[rows].tolist()
    for end, length in enumerate(descending):
        if total + length < (1 - max_padding) * descending[start] * (end - start + 1):
            groups.append(rows[start:end])
            start = end
            total = 0
        total += length
    return [*groups, rows[start:]]


def _halve(lengths: Rows, rows: Rows, max_padding: float) -> list[Rows]:
    """Halve by the modality with most padding until all groups fit, as no single order suits several modalities."""
    part = lengths[:, rows]
    longest = part.max(1, keepdims=True)
    padding = (longest - part).sum(1)
    if padding.sum() <= max_padding * longest.sum() * len(rows):
        return [rows]
    ordered = rows[np.argsort(part[padding.argmax()], kind="stable")]
    middle = len(rows) // 2
    first_half = _halve(lengths, ordered[:middle], max_padding)
    return first_half + _halve(lengths, ordered[middle:], max_padding)
