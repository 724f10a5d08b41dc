"""Messages between the processes of a run about their data: broken samples, and that their orders agree.

Each process adds its steps. Every few steps the processes exchange numbers and news, and each merges those of all, so
that all of them stop at the same step with the same message if too much is broken or their orders differ.
"""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onepeace.data.broken import Broken, BrokenCount, log_broken
from onepeace.data.steps import Step, Steps
from onepeace.errors import UserError


def check_agreement(digests: NDArray[np.int64], names: Sequence[str]) -> None:
    """`UserError` if processes have read different data.

    Args:
        digests: (P, D) digests of the same step from each process; 0 for what a process does not read.
        names: what each of the D digests is of.
    """
    for name, column in zip(names, digests.T, strict=True):
        readers = np.flatnonzero(column)
        if not len(readers):
            continue
        first = readers[0]
        for reader in readers:
            if column[reader] != column[first]:
                raise UserError(
                    f"processes {first} and {reader} do not agree on {name}: a shard differs between their machines, "
                    "or one of them cannot read it; compare the shards, and resume from the last checkpoint"
                )


class DataReport:
    """Exchange between the processes of a run: ``add`` each step; then ``numbers``, ``news`` and ``merge``.

    Args:
        steps: the steps of this process.
    """

    def __init__(self, steps: Steps) -> None:
        config = steps.builder.config
        self._digest_names = steps.digest_names
        self._buffer = config.shuffle_buffer
        self._batch_sizes: list[int] = []
        self._num_shards: list[int] = []
        self.counts: list[BrokenCount] = []
        """Broken samples by source, of all processes."""
        for source in steps.sources:
            self._batch_sizes.append(steps.batch_size[source.config.name])
            self._num_shards.append(len(source.shards))
            self.counts.append(BrokenCount(source.config.shards, config.broken_limit))
        self._samples_per_shard: list[float | None] = [None] * len(self.counts)
        """Mean of the windows by source, from when they last had shards of it."""
        self._news: dict[Broken, None] = {}
        self._steps_taken = 0
        self._digests = np.zeros(len(self._digest_names), np.int64)
        self._listed = np.zeros((len(self.counts), 2), np.int64)

    def add(self, step: Step) -> None:
        """Add the next step of this process."""
        self._steps_taken += 1
        self._digests = step.digests
        self._listed = step.listed
        for broken in step.broken:
            if not self.counts[broken.source].contains(broken):
                self._news[broken] = None

    def numbers(self) -> NDArray[np.int64]:
        """(K,) numbers to exchange; K is the same in every process."""
        return np.concatenate([self._digests, self._listed.reshape(-1)])

    def news(self) -> bytes:
        """The broken samples that are new in this process, a line of JSON for each."""
        lines = [json.dumps(broken).encode() + b"\n" for broken in self._news]
        return b"".join(lines)

    def merge(self, numbers: NDArray[np.int64], news: bytes) -> None:
        """Take over the numbers (P, K) and the news of all P processes; the broken samples that are new are logged.

        Raises:
            UserError: too many samples of a source are broken, or the orders of two processes differ.
        """
        digests, listed = np.split(numbers, [len(self._digest_names)], axis=1)
        check_agreement(digests, self._digest_names)
        reasons: list[str] = []
        for line in news.splitlines():
            broken = Broken(*json.loads(line))
            if self.counts[broken.source].add(broken):
                reasons.append(broken.reason)
        self._news.clear()
        log_broken(reasons, "replaced by others")
        self._check_limits(listed.sum(0).reshape(-1, 2))

    def _check_limits(self, listed: NDArray[np.int64]) -> None:
        """`UserError` if too many samples are broken, of those that were drawn, within an epoch."""
        for source, count in enumerate(self.counts):
            samples, shards = listed[source].tolist()
            if shards:
                self._samples_per_shard[source] = samples / shards
            samples_per_shard = self._samples_per_shard[source]
            if samples_per_shard is None:
                continue
            drawn = self._steps_taken * self._batch_sizes[source]
            in_shards = round(samples_per_shard * self._num_shards[source])
            total = min(max(drawn, self._buffer), in_shards)
            broken = count.total(samples_per_shard)
            count.check(total - broken, samples_per_shard)
