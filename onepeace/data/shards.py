"""webdataset shards, still encoded: which shards a pattern names, and the samples of one shard.

A shard is a .tar or .tar.gz with the members KEY.jpg (or any other file ending of a processor), KEY.txt and KEY.json,
and perhaps KEY.2.jpg, ... (further pictures) and KEY.mask.png (a segmentation map). The caption list is "captions" in
the json, else the text file; "label" in the json is a class name, "targets" holds the other targets (targets.py). A
shard that is partly broken gives what it still holds. Training reads samples one by one (reader.py); `read_source` has
small sets in memory, as evaluations need them.
"""

import glob
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.data.sample import Sample, content_of
from onepeace.data.shard_cache import plain_file, reason_of
from onepeace.data.tar_index import index_tar
from onepeace.data.targets import wrong_target
from onepeace.errors import UserError, need
from onepeace.files.source import describe, scheme
from onepeace.processors import PROCESSORS

log = logging.getLogger(__name__)

NAMED = 3
"""How many broken members are named in a warning; the rest is counted."""

BROKEN_FREE = 10
"""So many broken items never stop a run, unless nothing else is there."""

MASK = "mask.png"
"""The member that is the target "mask"."""


class Source(NamedTuple):
    """What one shard pattern held."""

    samples: list[Sample]
    broken: list[str]
    """One line per member or sample that could not be used: file, key, reason."""


def expand(pattern: str, root: str | Path | None = None, allow_pipe: bool = False) -> list[str]:
    """The shards of a pattern ("train/image_text/*.tar.gz", "https://host/pairs-{000..031}.tar"), sorted.

    Args:
        pattern: a path with *, ? and braces, relative to ``root``; or an address that fsspec opens (http, https, s3,
            gs, hf and others); http has no *. Environment variables ($NAME, ${NAME}) are expanded.
        root: folder or address, with environment variables.
        allow_pipe: also "pipe:COMMAND", whose output is the shard. The command runs in a shell: only for patterns
            that come from whom you trust.

    Returns:
        Absolute paths and addresses, for `raw_samples`.

    Raises:
        UserError: no file matches; a variable is not set; an address that cannot be opened or listed; "pipe:".
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
        if scheme(place):
            _check_address(place, allow_pipe)
            found = _listed(place) if "*" in place and scheme(place) != "pipe" else [place]
        else:
            # Absolute, so that a file whose name begins with "pipe:" is never taken for a command.
            found = [os.path.abspath(name) for name in glob.glob(place)]
        if not found:
            what = "data.root and the pattern" if folder else "the pattern"
            raise UserError(f"no shard matches {describe(place)}; check {what}")
        shards.update(found)
    return sorted(shards)


def _check_address(address: str, allow_pipe: bool) -> None:
    from fsspec import get_filesystem_class

    kind, name = scheme(address), describe(address)
    if kind == "pipe":
        if not allow_pipe:
            raise UserError(
                f"{name}: would run a command, and that is not allowed; give a path or an address, "
                "or data.allow_pipe=true if you trust it"
            )
        return
    if kind in ("http", "https"):
        need("aiohttp", "remote")
    try:
        get_filesystem_class(kind)
    except (ValueError, ImportError) as error:
        raise UserError(f"{name}: cannot be read ({error})") from error


def _listed(address: str) -> list[str]:
    """Addresses that a pattern with * fits."""
    from fsspec.core import url_to_fs

    if scheme(address) in ("http", "https"):
        raise UserError(f"{describe(address)}: a server has no list; write the numbers as {{000..031}}, not *")
    files, pattern = url_to_fs(address)
    return [files.unstrip_protocol(path) for path in files.glob(pattern)]


def read_source(
    pattern: str,
    pair: Sequence[str],
    root: str | Path | None = None,
    *,
    targets: Sequence[str] = (),
    keys: str = "*",
    allow_pipe: bool = False,
    broken_limit: float = 0.02,
) -> Source:
    """Read every shard of a pattern into memory.

    Args:
        pattern, root, allow_pipe: see `expand`.
        pair, targets: see `usable_sample`.
        keys: pattern of the samples' keys; others are passed over.
        broken_limit: see `Tally`.

    Raises:
        UserError: no file matches; no key fits; not one sample is complete, or too few are (names a file, a key
            and what it lacks).
    """
    samples, broken, tally = [], [], Tally(pattern, broken_limit, keys)
    for shard in expand(pattern, root, allow_pipe):
        lines: list[str] = []
        found = list(usable_samples(raw_samples(shard, lines), shard, pair, targets, lines, tally))
        tally.count(len(found), lines)
        samples += found
        broken += lines
    tally.check()
    return Source(samples, broken)


def usable_samples(
    raws: Iterable[dict[str, Any]],
    shard: str,
    pair: Sequence[str],
    targets: Sequence[str],
    broken: list[str],
    tally: "Tally",
) -> Iterator[Sample]:
    """The usable samples of a shard, of those whose key fits; others are said in ``broken``."""
    for raw in raws:
        if not fnmatchcase(raw["__key__"], tally.keys):
            tally.passed_over += 1
        elif (sample := usable_sample(raw, shard, pair, broken, targets)) is not None:
            yield sample


class Tally:
    """Counts the usable and the broken samples of a source, names the first broken ones, and stops at too many.

    Args:
        name: of the source, for messages.
        limit: share of broken samples, of all, above which `check` raises; a few always may be.
        keys: pattern that the keys should fit.
    """

    def __init__(self, name: str, limit: float, keys: str = "*") -> None:
        self.name, self.limit, self.keys = name, limit, keys
        self.good = self.broken = self.passed_over = 0
        self.named: list[str] = []
        self.last = ""

    def count(self, good: int, broken: Sequence[str]) -> None:
        """Add what a shard had."""
        self.good, self.broken = self.good + good, self.broken + len(broken)
        self.last = broken[-1] if broken else self.last
        for line in broken:
            if line not in self.named and len(self.named) < NAMED:
                self.named.append(line)
                log.warning("broken and left out: %s%s", line, " (more are counted)" * (len(self.named) == NAMED))

    def check(self, complete: bool = True) -> None:
        """UserError if too much is broken, or, where all of the source was read, nothing is usable."""
        if self.broken > max(BROKEN_FREE, self.limit * (self.good + self.broken)):
            raise UserError(
                f"{self.name}: {self.broken} broken to {self.good} usable samples, the last: {self.last}; mend the "
                "shards or raise data.broken_limit"
            )
        if self.good or not complete:
            return
        if self.passed_over and not self.broken:
            raise UserError(f"{self.name}: no key of its {self.passed_over} samples fits the pattern {self.keys!r}")
        raise UserError(f"{self.name}: no usable sample; {self.last or 'the shards are empty'}")


def raw_samples(shard: str, broken: list[str]) -> Iterator[dict[str, Any]]:
    """webdataset's groups of members with one key, in the shard's order; what it cannot read is noted and skipped.

    Args:
        shard: an absolute path or an address, from `expand`.
        broken: gets a line for each member that cannot be read and for a shard that cannot be opened or ends early.
    """
    name = describe(shard)
    try:
        with plain_file(shard, broken) as file:
            index = index_tar(file, name)
            broken += index.broken
            for key, members in index.samples:
                own = {ending: os.pread(file.fileno(), size, offset) for ending, (offset, size) in members.items()}
                yield {"__key__": key, "__url__": shard, **own}
    except Exception as error:  # whatever a protocol's library raises: the shard is left out
        broken.append(f"{name}: {reason_of(error)}")


def media_of(raw: Mapping[str, Any], endings: Collection[str]) -> Any:
    """Content of a sample in a modality, as bytes or `Extent`: its file, a list where KEY.2.jpg, ... follow KEY.jpg.

    Args:
        raw: from `raw_samples`.
        endings: of the modality's files, without the dot.

    Raises:
        ValueError: of several files one is empty, or a number is left out.
    """
    files: dict[int, dict[str, Any]] = {}
    for member, data in raw.items():
        # "KEY.thumb.jpg": the last ending says what it is.
        name, _, ending = member.rpartition(".")
        if ending in endings and member != MASK:
            number = int(name) if re.fullmatch("[2-9]", name) else 1
            if data or number > 1:
                files.setdefault(number, {})[ending] = data
    if 1 not in files:
        return None
    contents = [found[min(found)] for _, found in sorted(files.items())]
    if max(files) != len(files) or not all(contents):
        numbers = ", ".join(str(number) for number, found in sorted(files.items()) if found[min(found)])
        raise ValueError(f"of its files with a number only {numbers} can be used")
    return contents if len(contents) > 1 else contents[0]


def usable_sample(
    raw: dict[str, Any], shard: str, pair: Sequence[str], broken: list[str], targets: Sequence[str] = ()
) -> Sample | None:
    """The sample of one group of members; None, and a line in ``broken``, where it lacks something.

    Args:
        raw, shard: from `raw_samples`, or a `Shard`'s.
        pair: the modalities a sample must have; "text" are its captions, others a member that their processor reads.
        targets: what else it must have, and have as targets.py says: "label", the entries of "targets" in the .json,
            and "mask".
    """
    name, key = describe(shard), raw["__key__"]
    members = {member.rpartition(".")[2]: data for member, data in raw.items() if not member.startswith("__")}
    about: dict[str, Any] = {}
    readable = True
    captions: list[str] = []
    try:
        about = dict(json.loads(content_of(members.get("json", b"{}"))))
        found = about.get("captions") or []
        captions = [caption for caption in ([found] if isinstance(found, str) else found) if isinstance(caption, str)]
    except (ValueError, TypeError, RecursionError) as error:
        broken.append(f"{name}: {key}.json cannot be read ({error})")
        readable = False
    if not captions:
        captions = [content_of(members.get("txt", b"")).decode("utf-8", errors="replace")]
    inputs: dict[str, Any] = {"text": [caption.strip() for caption in captions if caption.strip()]}
    for modality in pair:
        if modality != "text":
            try:
                media = media_of(raw, {suffix.lstrip(".") for suffix in PROCESSORS[modality].suffixes})
            except ValueError as error:
                broken.append(f"{name}: {key}: {error}")
                return None
            if media is not None:
                inputs[modality] = media
    known_targets = dict(about["targets"]) if isinstance(about.get("targets"), dict) else {}
    if isinstance(about.get("label"), str):
        known_targets["label"] = about["label"]
    if raw.get(MASK):
        known_targets["mask"] = raw[MASK]
    checked = known_targets
    if "mask" in targets:  # a file, which is not read without need
        checked = {**known_targets, "mask": content_of(known_targets.get("mask"))}
    if "text" in pair and not inputs["text"]:
        if readable:
            broken.append(f"{name}: {key} has no caption (a .txt, or captions in a .json)")
    elif lacking := [modality for modality in pair if modality not in inputs]:
        broken.append(f"{name}: {key} has no {' and no '.join(lacking)} file")
    elif lacking := [target for target in targets if target not in known_targets]:
        where = f" (a .{MASK})" if lacking == ["mask"] else " in its .json"
        broken.append(f"{name}: {key} has no {' and no '.join(lacking)}{where}")
    elif wrong := wrong_target(checked, targets):
        broken.append(f"{name}: {key}: {wrong}")
    else:
        return Sample(key, name, inputs, known_targets)
    return None
