"""Patterns of webdataset shards, and the samples of a source.

A shard is a .tar or .tar.gz, whose samples sample.py describes. A partly broken shard yields its usable samples.
"""

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import translate
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onepeace.data.broken import Broken, BrokenCount, log_broken
from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.index import TarIndex
from onepeace.data.sample import BrokenSample, Sample, has_modalities, parse_sample
from onepeace.data.shard import FileState, Shard, UnreadableShard, content_of, open_shard
from onepeace.data.write import check_replaced
from onepeace.errors import UserError, need
from onepeace.files.source import describe, scheme


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
        matches = _matches(part)
        if not matches:
            checked = "data.root and the pattern" if folder else "the pattern"
            raise UserError(f"no shard matches {describe(part)}; check {checked}")
        shards.update(matches)
    return sorted(shards)


def _matches(pattern: str) -> list[str]:
    """Files or addresses that match a pattern without braces."""
    if scheme(pattern):
        return _addresses(pattern)
    # Absolute, so that a file whose name begins with "x:" is never taken for an address.
    paths = [os.path.abspath(path) for path in glob.glob(pattern)]
    check_replaced(pattern, paths)
    return paths


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


@dataclass(frozen=True, eq=False)
class Candidates:
    """The samples of a shard that a source uses; some may turn out to be broken when they are read."""

    source: "Source"
    shard: Shard
    rows: NDArray[np.int64]
    """(N,): their numbers in the shard."""

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, candidate: int) -> str:
        """Key of a sample."""
        return self.shard.index.key(int(self.rows[candidate]))

    def read(self, candidate: int) -> Sample:
        """A sample, parsed; its media are not read.

        Raises:
            UnreadableShard: the shard cannot be read any more.
            BrokenSample: a part of the sample is missing or wrong.
        """
        row = int(self.rows[candidate])
        return parse_sample(
            key=self.shard.index.key(row),
            members=self.shard.members(row),
            source=self.shard.name,
            modalities=self.source.config.modalities,
            targets=self.source.config.targets,
            has_templates=self.source.has_templates,
        )

    def broken(self, candidate: int, error: UserError) -> Broken:
        """Report of an error of `read`, or of decoding the sample."""
        number = self.source.number
        name = self.shard.name
        reason = str(error)
        if isinstance(error, UnreadableShard):
            return Broken(number, name, key="", reason=reason, samples=len(self))
        key = self.key(candidate)
        if not isinstance(error, BrokenSample):
            reason = f"{name}: {key} cannot be decoded ({error})"
        return Broken(number, name, key, reason)

    def damages(self) -> list[Broken]:
        """The damaged parts of the shard, each as one sample."""
        broken: list[Broken] = []
        number = self.source.number
        for line in self.shard.index.damages:
            broken.append(Broken(number, self.shard.name, key=line, reason=line))
        return broken


class Source:
    """Samples of an entry of data.train, shard by shard.

    Args:
        config: the entry.
        data: the recipe's data section.
        number: number of the entry.

    Raises:
        UserError: no file matches the pattern.
    """

    def __init__(self, config: SourceConfig, data: DataConfig, number: int = 0) -> None:
        self.config = config
        self.number = number
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

    def open(self, number: int) -> Candidates:
        """The samples of a shard that this source uses.

        Raises:
            UnreadableShard: the shard cannot be opened.
            CacheFailure: the cache cannot be written.
            UserError: no shard of the source has a sample.
        """
        try:
            shard = self._open(number)
        except UnreadableShard as error:
            self._note_empty(number, str(error))
            raise
        candidates = Candidates(self, shard, self._rows(shard.index))
        if len(candidates):
            self._empty.discard(number)
        else:
            self._note_empty(number, next(iter(shard.index.damages), ""))
        return candidates

    def _open(self, number: int) -> Shard:
        shard = open_shard(self.shards[number], self.cache_bytes)
        state = shard.file.state
        if self._states.setdefault(number, state) != state:
            raise UnreadableShard(
                "has changed during the run; stop the run, and start it again to read the new one", where=shard.name
            )
        return shard

    def _note_empty(self, number: int, example: str) -> None:
        self._empty.add(number)
        if len(self._empty) == len(self.shards):
            raise self.no_sample(example)

    def _rows(self, index: TarIndex) -> NDArray[np.int64]:
        """Numbers of the samples with a fitting key and files of these modalities."""
        fits = [has_modalities(layout, self.config.modalities) for layout in index.layouts]
        rows = np.flatnonzero(np.array(fits, bool)[index.layout_of])
        if self.config.keys == "*":
            return rows
        fits_key = [self._matches_key(index.key(row)) is not None for row in rows.tolist()]
        return rows[np.array(fits_key, bool)]

    def unreadable(self, number: int, error: UnreadableShard) -> Broken:
        """Report of an error of `open`."""
        name = describe(self.shards[number])
        return Broken(self.number, name, key="", reason=str(error), samples=0)

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
        count = BrokenCount(self.config.shards, self.broken_limit)
        broken: list[Broken] = []
        listed = 0
        usable = 0
        for number in range(len(self.shards)):
            try:
                candidates = self.open(number)
            except UnreadableShard as error:
                broken.append(self.unreadable(number, error))
                continue
            listed += len(candidates)
            broken += candidates.damages()
            for i in range(len(candidates)):
                try:
                    sample = candidates.read(i)
                except (BrokenSample, UnreadableShard) as error:
                    broken.append(candidates.broken(i, error))
                    continue
                usable += 1
                yield sample
        new = [entry for entry in broken if count.add(entry)]
        log_broken([entry.reason for entry in new], "left out")
        if not usable:
            raise self.no_sample(count.example)
        opened = len(self.shards) - len(count.shards)
        count.check(usable, listed / max(opened, 1))

    @cached_property
    def samples(self) -> list[Sample]:
        """All samples in memory, for tables of teachers and labels; see `forget`."""
        return list(self)

    def forget(self) -> None:
        """Free ``samples``."""
        vars(self).pop("samples", None)


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
        UserError: no file matches; no key fits; no sample is complete, or too few are.
    """
    config = SourceConfig(pattern, tuple(modalities), keys=keys, targets=tuple(targets))
    data = DataConfig((config,), str(root or ""), broken_limit=broken_limit)
    samples: list[Sample] = []
    for sample in Source(config, data):
        inputs = content_of(sample.inputs)
        targets_in_memory = content_of(sample.targets)
        samples.append(replace(sample, inputs=inputs, targets=targets_in_memory))
    return samples
