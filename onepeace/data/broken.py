"""Broken samples: what is known of each, and how many a source may have."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

from onepeace.errors import UserError

log = logging.getLogger(__name__)

ALLOWED_BROKEN = 10
"""Number of broken samples of a source that never stop a run, unless all are broken."""
NAMED = 3
"""Maximum number of broken samples that are named at a time; others are only counted."""


class BrokenSample(UserError):
    """A sample lacks a part or has a wrong one; the message names shard and key."""


class Broken(NamedTuple):
    """A sample, or a whole shard, that cannot be read."""

    source: int
    """Number of its source in data.train."""
    shard: str
    """Name of the shard."""
    key: str
    """Key of the sample; "" for a whole shard."""
    reason: str
    """A line that names it."""
    samples: int = 1
    """Number of samples lost; 0 for a shard that never could be opened: as many as others have on average."""

    @property
    def is_shard(self) -> bool:
        """Whether it is a whole shard."""
        return not self.key


class BrokenCount:
    """Distinct broken samples and shards of one source.

    Args:
        source: pattern of the source's shards, for messages.
        limit: data.broken_limit.
    """

    def __init__(self, source: str, limit: float) -> None:
        self.source = source
        self.limit = limit
        self.shards: dict[str, Broken] = {}
        self.samples: dict[tuple[str, str], Broken] = {}

    def contains(self, broken: Broken) -> bool:
        """Whether it has been added."""
        if broken.is_shard:
            return broken.shard in self.shards
        return (broken.shard, broken.key) in self.samples

    def add(self, broken: Broken) -> bool:
        """Count it; False if it was counted before."""
        is_new = not self.contains(broken)
        if broken.is_shard:
            self.shards[broken.shard] = broken
        else:
            self.samples[broken.shard, broken.key] = broken
        return is_new

    def total(self, samples_per_shard: float) -> int:
        """Number of broken samples, with those of broken shards."""
        total = 0.0
        for broken in self.samples.values():
            if broken.shard not in self.shards:
                total += broken.samples
        for broken in self.shards.values():
            total += broken.samples or max(1.0, samples_per_shard)
        return round(total)

    def check(self, usable: int, samples_per_shard: float) -> None:
        """`UserError` if more than the limit are broken.

        Args:
            usable: number of samples that are not broken.
            samples_per_shard: mean number of samples of a shard.
        """
        broken = self.total(samples_per_shard)
        if broken > max(ALLOWED_BROKEN, self.limit * (usable + broken)):
            raise UserError(
                f"{self.source}: {broken} broken and {usable} usable samples ({self.example}); repair the shards or "
                "raise data.broken_limit"
            )

    @property
    def lines(self) -> list[str]:
        """The lines that name them."""
        lines = [broken.reason for broken in self.shards.values()]
        lines += [broken.reason for broken in self.samples.values()]
        return lines

    @property
    def example(self) -> str:
        """The first line; "" if there is none."""
        return next(iter(self.lines), "")


def log_broken(lines: Iterable[str], what_happens: str) -> None:
    """Log the first few of several broken samples, and the number of the others."""
    lines = list(lines)
    for line in lines[:NAMED]:
        log.warning("broken and %s: %s", what_happens, line)
    if len(lines) > NAMED:
        log.warning("and %d more", len(lines) - NAMED)
