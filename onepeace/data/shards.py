"""Patterns of webdataset shards, and the samples of a shard, still encoded.

A shard is a .tar or .tar.gz with the members KEY.jpg (or another file ending of a processor), KEY.txt and KEY.json, and
optionally KEY.2.jpg, ... (further pictures) and KEY.mask.png (a segmentation map). Captions are "captions" in the json,
else the text file; "label" in the json is a class name, "targets" holds the other targets (targets.py). A partly broken
shard yields its usable samples.
"""

import glob
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from onepeace.data.config import DataConfig, SourceConfig
from onepeace.data.sample import Sample
from onepeace.data.shard_cache import content_of, open_shard
from onepeace.data.targets import wrong_target
from onepeace.errors import UserError, need
from onepeace.files.source import describe, scheme
from onepeace.processors import PROCESSORS

log = logging.getLogger(__name__)

NAMED = 3
"""Maximum number of broken samples that are named in warnings; further ones are only counted."""
ALLOWED_BROKEN = 10
"""Number of broken items that never stop a run, unless all are broken."""
MASK = "mask.png"
"""Name of the member with the target "mask"."""


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
        raise UserError(f"{describe(pattern)}: a brace is not closed; write {{a,b}} or {{000..031}}") from error
    shards: set[str] = set()
    for part in parts:
        place = part if scheme(part) else os.path.join(folder, part)
        # Absolute, so that a file whose name begins with "x:" is never taken for an address.
        found = _addresses(place) if scheme(place) else [os.path.abspath(name) for name in glob.glob(place)]
        if not found:
            what = "data.root and the pattern" if folder else "the pattern"
            raise UserError(f"no shard matches {describe(place)}; check {what}")
        shards.update(found)
    return sorted(shards)


def _addresses(address: str) -> list[str]:
    """The address itself, or the addresses that match its *."""
    from fsspec import get_filesystem_class
    from fsspec.core import url_to_fs

    kind, name = str(scheme(address)), describe(address)
    if kind in ("http", "https"):
        need("aiohttp", "remote")
        if "*" in address:
            raise UserError(f"{name}: a server has no list; write the numbers as {{000..031}}, not *")
    try:
        get_filesystem_class(kind)
    except (ValueError, ImportError) as error:
        raise UserError(f"{name}: cannot be read ({error})") from error
    if "*" not in address:
        return [address]
    files, pattern = url_to_fs(address)
    return [files.unstrip_protocol(path) for path in files.glob(pattern)]


class Source:
    """Samples of an entry of data.train, shard by shard; media are read on demand. UserError for missing shards."""

    def __init__(self, config: SourceConfig, data: DataConfig) -> None:
        self.config, self.broken_limit, self.cache_bytes = config, data.broken_limit, data.cache_gigabytes * 1e9
        self.shards = expand(config.shards, data.root)
        self.has_templates = any(data.templates.get(modality) for modality in config.pair)
        self.good = self.broken = 0
        self.named: list[str] = []
        """Messages about the first broken samples."""

    def read(self, number: int) -> list[Sample]:
        """Usable samples of a shard; broken ones are counted, and the first few are logged."""
        shard, own = self.shards[number], self.config
        raws, broken = open_shard(shard, self.cache_bytes)
        samples = []
        for raw in raws:
            if fnmatchcase(raw["__key__"], own.keys) and not _is_of_another_kind(raw, own.pair):
                try:
                    samples.append(usable_sample(raw, shard, own.pair, own.targets, self.has_templates))
                except ValueError as error:
                    broken.append(str(error))
        self.good, self.broken = self.good + len(samples), self.broken + len(broken)
        for line in broken:
            if len(self.named) < NAMED and line not in self.named:
                self.named.append(line)
                log.warning("broken and left out: %s%s", line, " (more are only counted)" * (len(self.named) == NAMED))
        return samples

    def check(self, complete: bool = True) -> None:
        """UserError if too many samples are broken, or if reading is ``complete`` and none is usable."""
        none = f"no key fits {self.config.keys!r} among samples with {' and '.join(self.config.pair)}"
        name, first = self.config.shards, next(iter(self.named), none)
        if self.broken > max(ALLOWED_BROKEN, self.broken_limit * (self.good + self.broken)):
            raise UserError(
                f"{name}: {self.broken} broken and {self.good} usable samples ({first}); repair the shards or raise "
                "data.broken_limit"
            )
        if complete and not self.good:
            raise UserError(f"{name}: no usable sample; {first}")

    def __iter__(self) -> Iterator[Sample]:
        """All samples once, in the order of the shards; then `check` is called."""
        for number in range(len(self.shards)):
            yield from self.read(number)
        self.check()

    @cached_property
    def samples(self) -> list[Sample]:
        """All samples in memory, for tables of teachers and labels; see `forget`."""
        return list(self)

    def forget(self) -> None:
        """Free ``samples``."""
        vars(self).pop("samples", None)


def read_source(
    pattern: str,
    pair: Sequence[str],
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
    config = SourceConfig(pattern, tuple(pair), keys=keys, targets=tuple(targets))
    data = DataConfig((config,), str(root or ""), broken_limit=broken_limit)
    return [
        replace(sample, inputs=content_of(sample.inputs), targets=content_of(sample.targets))
        for sample in Source(config, data)
    ]


def media_of(raw: Mapping[str, Any], endings: Collection[str]) -> Any:
    """File of a sample with one of the endings, given without dots; a list if KEY.2.jpg, ... follow KEY.jpg.

    Raises:
        ValueError: one of several files is empty, or a number is missing.
    """
    files: dict[int, Any] = {}
    for member in sorted(raw, key=lambda member: member.rpartition(".")[::2]):  # KEY.jpg before KEY.thumb.jpg
        name, _, ending = member.rpartition(".")
        number = int(name) if re.fullmatch("[2-9]", name) else 1
        if ending in endings and member != MASK and (raw[member] or number > 1):
            files.setdefault(number, raw[member])
    if 1 not in files:
        return None
    if max(files) != len(files) or not all(files.values()):
        numbers = ", ".join(str(number) for number, content in sorted(files.items()) if content)
        raise ValueError(f"only its files {numbers} can be used")
    return [content for _, content in sorted(files.items())] if len(files) > 1 else files[1]


def usable_sample(
    raw: Mapping[str, Any], shard: str, pair: Sequence[str], targets: Sequence[str] = (), has_templates: bool = False
) -> Sample:
    """Parse a group of members.

    Args:
        raw: a sample from `open_shard`.
        pair: required modalities: "text" for captions, others for a member that their processor reads.
        targets: required targets, in the form of targets.py.
        has_templates: whether templates make captions of a label, so that a sample with one needs no other.

    Raises:
        ValueError: a part is missing or wrong (the message names shard and key).
    """
    where = f"{describe(shard)}: {raw['__key__']}"
    members = {member.rpartition(".")[2]: data for member, data in raw.items()}
    try:
        about = dict(json.loads(content_of(members.get("json", b"{}"))))
        captions = _texts(about.get("captions") or [])
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where}.json cannot be read ({error})") from error
    captions = captions or _texts(content_of(members.get("txt", b"")).decode("utf-8", errors="replace"))
    inputs: dict[str, Any] = {"text": captions}
    for modality in pair:
        if modality != "text":
            try:
                inputs[modality] = media_of(raw, {suffix[1:] for suffix in PROCESSORS[modality].suffixes})
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if inputs[modality] is None:
                raise ValueError(f"{where} has no {modality} file")
    known = dict(about["targets"]) if isinstance(about.get("targets"), dict) else {}
    if isinstance(about.get("label"), str):
        known["label"] = about["label"]
    if "text" in pair and not captions and not (has_templates and known.get("label")):
        hint = "; data.templates in a recipe make captions of its label" if known.get("label") else ""
        raise ValueError(f"{where} has no caption (a .txt, or captions in a .json){hint}")
    if raw.get(MASK):
        known["mask"] = raw[MASK]
    for target in targets:
        if target not in known:
            raise ValueError(f"{where} has no {target} {f'(a .{MASK})' if target == 'mask' else 'in its .json'}")
        value = content_of(known[target])  # for a mask, its bytes
        if wrong := wrong_target(target, value, known):
            raise ValueError(f"{where}: {wrong}")
    return Sample(raw["__key__"], describe(shard), inputs, known)


def _is_of_another_kind(raw: Mapping[str, Any], pair: Sequence[str]) -> bool:
    """Whether a sample has only files of modalities outside the pair, as in shards of several modalities."""
    endings = {f".{member.rpartition('.')[2]}" for member in raw if member != MASK}
    kinds = {key for key, one in PROCESSORS.items() if key != "text" and one.suffixes & endings}
    wanted = {*pair} - {"text"}
    return bool(kinds and wanted) and kinds.isdisjoint(wanted)


def _texts(found: Any) -> list[str]:
    """Non-blank texts of a string or a list."""
    texts = [found] if isinstance(found, str) else found
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]
