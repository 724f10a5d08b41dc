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
        self.shards: dict[str, int] = {}
        """Number of samples lost with each broken shard, 0 if it is unknown."""
        self.keys: dict[str, set[str]] = {}
        """Keys of the other broken samples by shard."""
        self.example = ""
        """The line of the first one."""

    def contains(self, broken: Broken) -> bool:
        """Whether it has been added."""
        if broken.is_shard:
            return broken.shard in self.shards
        return broken.key in self.keys.get(broken.shard, ())

    def add(self, broken: Broken) -> bool:
        """Count it; False if it was counted before."""
        if self.contains(broken):
            return False
        if broken.is_shard:
            self.shards[broken.shard] = broken.samples
        else:
            self.keys.setdefault(broken.shard, set()).add(broken.key)
        self.example = self.example or broken.reason
        return True

    def total(self, samples_per_shard: float) -> int:
        """Number of broken samples, with those of broken shards."""
        total = 0.0
        for samples in self.shards.values():
            total += samples or max(1.0, samples_per_shard)
        for shard, keys in self.keys.items():
            if shard not in self.shards:
                total += len(keys)
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
                f"{broken} broken and {usable} usable samples ({self.example}); repair the shards or "
                "raise data.broken_limit",
                where=self.source,
            )


def log_broken(lines: Iterable[str], what_happens: str) -> None:
    """Log the first few of several broken samples, and the number of the others."""
    lines = list(lines)
    for line in lines[:NAMED]:
        log.warning("broken and %s: %s", what_happens, line)
    if len(lines) > NAMED:
        log.warning("%d more are broken and %s", len(lines) - NAMED, what_happens)
