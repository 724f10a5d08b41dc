"""Sources: patterns of webdataset shards, the samples that a recipe uses of them, and how much of them is lost.

A shard that cannot be read is lost with all of its samples; a sample that lacks a part is left out. Both are counted,
and too many are an error.
"""

import glob
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import translate
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.sample import BrokenSample, Sample, has_modalities, parse_sample
from onepeace.data.shard import FileState, Shard, UnreadableShard, content_of, open_shard
from onepeace.errors import UserError, need
from onepeace.files.source import describe, scheme

log = logging.getLogger(__name__)

REPLACING = ".replacing"
"""Ending of the name of the mark that a folder has while new shards take the place of older ones."""
ALLOWED_BROKEN = 10
"""Number of lost samples of a source that never stop a run, unless all are lost."""
NAMED = 3
"""Maximum number of lost samples and shards that are named at a time; others are only counted."""


def expand(pattern: str, root: str | Path | None = None) -> list[str]:
    """Absolute paths and addresses of the shards of a pattern, sorted.

    Args:
        pattern: a path with *, ? and braces, relative to ``root`` ("train/image_text/*.tar.gz"); or an address that
            fsspec opens ("https://host/pairs-{000..031}.tar"); http has no *. Environment variables are expanded.
        root: folder or address, with environment variables.

    Raises:
        UserError: no file matches; a variable is not set; an address that cannot be opened or listed.
    """
    import braceexpand  # comes with webdataset

    folder = os.path.expandvars(os.path.expanduser(str(root or "")))
    if "$" in folder:
        raise UserError(f"data.root is {root}, and that variable is not set; set it, or give data.root=FOLDER")
    try:
        parts = list(braceexpand.braceexpand(os.path.expandvars(pattern)))
    except ValueError as error:
        raise UserError("a brace is not closed; write {a,b} or {000..031}", where=describe(pattern)) from error
    shards: set[str] = set()
    for part in parts:
        if not scheme(part):
            part = os.path.join(folder, part)
        if scheme(part):
            matches = _addresses(part)
        else:  # absolute, so that a file whose name begins with "x:" is never taken for an address
            matches = [os.path.abspath(path) for path in glob.glob(part)]
            _check_replaced(part, matches)
        if not matches:
            checked = "data.root and the pattern" if folder else "the pattern"
            raise UserError(f"no shard matches {describe(part)}; check {checked}")
        shards.update(matches)
    return sorted(shards)


def _check_replaced(pattern: str, shards: Sequence[str]) -> None:
    """Raise `UserError` if a process replaces shards, or was killed while it did.

    Args:
        pattern: what the shards were asked for by.
        shards: the shards that match it.
    """
    for folder in sorted({os.path.dirname(path) for path in (pattern, *shards)}):
        for mark in glob.glob(os.path.join(folder, f".*{REPLACING}")):
            prefix = os.path.join(folder, os.path.basename(mark)[1:].removesuffix(REPLACING))
            if not shards or any(shard.startswith(f"{prefix}-") for shard in shards):
                raise UserError(
                    f"{prefix}-*.tar: are being replaced, or that was cut off; write them again with onepeace shards "
                    "... --force"
                )


def _addresses(address: str) -> list[str]:
    """The address itself, or the addresses that match its *."""
    from fsspec import get_filesystem_class
    from fsspec.core import url_to_fs

    protocol = str(scheme(address))
    name = describe(address)
    if protocol in ("http", "https"):
        need("aiohttp", "remote")
        if "*" in address:
            raise UserError("a server has no list; write the numbers as {000..031}, not *", where=name)
    try:
        get_filesystem_class(protocol)
    except (ValueError, ImportError) as error:
        raise UserError(f"cannot be read ({error})", where=name) from error
    if "*" not in address:
        return [address]
    filesystem, pattern = url_to_fs(address)
    return [filesystem.unstrip_protocol(path) for path in filesystem.glob(pattern)]


class Lost(NamedTuple):
    """A shard that cannot be read, or a broken sample."""

    source: int
    """Number of its source in data.train."""
    reason: str
    """A line that names it."""
    shard: int | None = None
    """Number of the shard in the source; None for a sample."""
    epoch: int = 0
    """Epoch in which the shard could not be read."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The samples of a shard that a source uses; some may turn out to be broken when they are read."""

    source: "Source"
    number: int
    """Number of the shard in the source."""
    shard: Shard
    rows: NDArray[np.int64]
    """(N,): their numbers in the shard."""

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, candidate: int) -> Sample:
        """A sample, parsed; its media are not read.

        Raises:
            UnreadableShard: the shard cannot be read any more.
            BrokenSample: a part of the sample is missing or wrong.
        """
        row = int(self.rows[candidate])
        return parse_sample(
            key=self.shard.keys[row],
            members=self.shard.members(row),
            source=self.shard.name,
            modalities=self.source.config.modalities,
            targets=self.source.config.targets,
            has_templates=self.source.has_templates,
        )

    def lose(self, candidate: int, error: UserError, epoch: int) -> None:
        """Note that a sample is broken, or that the shard cannot be read any more."""
        source = self.source
        if isinstance(error, UnreadableShard):
            reason = f"{error}; its {len(self)} samples are lost"
            source.lost.append(Lost(source.number, reason, self.number, epoch))
            return
        reason = str(error)
        if not isinstance(error, BrokenSample):
            key = self.shard.keys[int(self.rows[candidate])]
            reason = f"{self.shard.name}: {key} cannot be decoded ({error})"
        source.drawn += 1
        source.lost.append(Lost(source.number, reason))


class Source:
    """Samples of an entry of data.train, shard by shard.

    Args:
        config: the entry.
        data: the recipe's data section.
        number: number of the entry.
        needs_all: whether a shard that cannot be read is an error, as for an evaluation, whose figures would be those
            of other samples.

    Raises:
        UserError: no file matches the pattern.
    """

    def __init__(self, config: SourceConfig, data: DataConfig, number: int = 0, needs_all: bool = False) -> None:
        self.config = config
        self.number = number
        self.needs_all = needs_all
        self.broken_limit = data.broken_limit
        self.cache_bytes = data.cache_gigabytes * 1e9
        self.shards = expand(config.shards, data.root)
        """Paths and addresses of the shards."""
        self._states: dict[int, FileState] = {}
        """States of the files of shards when this process first opened them."""
        self._empty: set[int] = set()
        """Numbers of the shards that were opened last without a usable sample, or could not be."""
        self.has_templates = any(data.templates.get(modality) for modality in config.modalities)
        self._matches_key = re.compile(translate(config.keys)).match
        self.drawn = 0
        """Number of samples that were drawn in this process, with broken ones, since somebody set it to 0."""
        self.lost: list[Lost] = []
        """Samples and shards lost in this process, until somebody empties the list."""

    def open(self, number: int) -> Candidates:
        """The samples of a shard that this source uses.

        Raises:
            UnreadableShard: the shard cannot be opened.
            CacheFailure: the cache cannot be written.
            UserError: no shard of the source has a sample.
        """
        try:
            shard = open_shard(self.shards[number], self.cache_bytes)
            if self._states.setdefault(number, shard.file.state) != shard.file.state:
                raise UnreadableShard(
                    "has changed during the run; stop the run, and start it again to read the new one", where=shard.name
                )
        except UnreadableShard as error:
            self._note_empty(number, str(error))
            raise
        candidates = Candidates(self, number, shard, self._rows(shard))
        if len(candidates):
            self._empty.discard(number)
        else:
            self._note_empty(number, "")
        return candidates

    def _note_empty(self, number: int, example: str) -> None:
        self._empty.add(number)
        if len(self._empty) == len(self.shards):
            raise self.no_sample(example)

    def _rows(self, shard: Shard) -> NDArray[np.int64]:
        """Numbers of the samples with a fitting key and files of these modalities."""
        fits = [has_modalities(layout, self.config.modalities) for layout in shard.layouts]
        rows = np.flatnonzero(np.array(fits, bool)[shard.layout_of])
        if self.config.keys == "*":
            return rows
        fits_key = [self._matches_key(shard.keys[row]) is not None for row in rows.tolist()]
        return rows[np.array(fits_key, bool)]

    def no_sample(self, example: str) -> UserError:
        """Error for a source without a usable sample, of which ``example`` is broken."""
        modalities = " and ".join(self.config.modalities)
        reason = example or f"no key fits {self.config.keys!r} among samples with {modalities}"
        return UserError(f"no usable sample; {reason}", where=self.config.shards)

    def __iter__(self) -> Iterator[Sample]:
        """All usable samples once, in the order of the shards.

        Raises:
            UserError: at the end, if too many samples are broken or none is usable.
        """
        losses = Losses(self)
        lines: list[str] = []
        for number in range(len(self.shards)):
            try:
                candidates = self.open(number)
            except UnreadableShard as error:
                if self.needs_all:
                    raise
                losses.unreadable[number] = 0
                lines.append(str(error))
                continue
            for i in range(len(candidates)):
                losses.drawn += 1
                try:
                    sample = candidates.read(i)
                except UserError as error:
                    losses.broken += 1
                    lines.append(str(error))
                    continue
                yield sample
        log_lost(lines, "left out")
        example = next(iter(lines), "")
        if losses.drawn == losses.broken:
            raise self.no_sample(example)
        losses.check(example)

    @cached_property
    def samples(self) -> list[Sample]:
        """All samples in memory, for tables of teachers and labels; see `forget`."""
        return list(self)

    def forget(self) -> None:
        """Free ``samples``."""
        vars(self).pop("samples", None)


def open_sources(data: DataConfig) -> list[Source]:
    """Sources of a recipe, in its order; UserError for missing shards."""
    return [Source(config, data, number) for number, config in enumerate(data.train)]


@dataclass(eq=False)
class Losses:
    """How much of a source a run has lost."""

    source: Source
    drawn: int = 0
    """Number of samples that were drawn, with broken ones."""
    broken: int = 0
    unreadable: dict[int, int] = field(default_factory=dict)
    """Epoch in which a shard could last not be read, by its number."""

    def add_unreadable(self, lost: Sequence[Lost]) -> None:
        """Add shards that could not be read, as told at once; those of epochs before may have been mended since.

        A lane that meets one is an epoch ahead of others sooner, so the epoch is that of the last lane.
        """
        new = {shard.shard: shard.epoch for shard in lost if shard.shard is not None}
        present = min(new.values(), default=0)
        kept = {number: epoch for number, epoch in self.unreadable.items() if epoch >= present - 1}
        self.unreadable = kept | new

    def check(self, example: str) -> None:
        """`UserError` if the share of unreadable shards, plus that of broken samples after the first few, is too much.

        Args:
            example: line of one of them.
        """
        too_many = max(self.broken - ALLOWED_BROKEN, 0)
        lost = len(self.unreadable) / len(self.source.shards) + too_many / max(self.drawn, 1)
        if lost > self.source.broken_limit:
            raise UserError(
                f"{len(self.unreadable)} of {len(self.source.shards)} shards cannot be read, and {self.broken} of "
                f"{self.drawn} samples are broken ({example}); repair the shards, or raise data.broken_limit",
                where=self.source.config.shards,
            )


def log_lost(lines: Sequence[str], what_happens: str) -> None:
    """Log the first few of several lines about what is lost, and the number of the others."""
    for line in lines[:NAMED]:
        log.warning("lost and %s: %s", what_happens, line)
    if len(lines) > NAMED:
        log.warning("%d more are lost and %s", len(lines) - NAMED, what_happens)


def read_source(
    pattern: str,
    modalities: Sequence[str],
    root: str | Path | None = None,
    *,
    targets: Sequence[str] = (),
    keys: str = "*",
    broken_limit: float = 0.02,
) -> list[Sample]:
    """The samples of every shard of a pattern, with all their bytes in memory.

    The arguments are those of `expand`, `SourceConfig` and `DataConfig`.

    Raises:
        UserError: no file matches; no key fits; a shard cannot be read; no sample is complete, or too few are.
    """
    config = SourceConfig(pattern, tuple(modalities), keys=keys, targets=tuple(targets))
    data = DataConfig((config,), str(root or ""), broken_limit=broken_limit)
    samples: list[Sample] = []
    for sample in Source(config, data, needs_all=True):
        inputs = content_of(sample.inputs)
        targets_in_memory = content_of(sample.targets)
        samples.append(replace(sample, inputs=inputs, targets=targets_in_memory))
    return samples
