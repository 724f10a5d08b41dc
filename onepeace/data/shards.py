"""webdataset shards, still encoded: which shards a pattern names, the samples of one shard, all of a source in memory.

A shard is a .tar or .tar.gz with the members KEY.jpg (or any other file ending of a processor), KEY.txt and KEY.json,
and perhaps KEY.2.jpg, ... (further pictures) and KEY.mask.png (a segmentation map). The caption list is "captions" in
the json, else the text file; "label" in the json is a class name, "targets" holds the other targets (targets.py). A
shard that is partly broken gives what it still holds. Sets that fit in memory are read whole, once (`read_source`);
others are streamed (streams.py).
"""

import glob
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.data.process_output import ProcessOutput
from onepeace.data.sample import Sample
from onepeace.data.targets import wrong_target
from onepeace.errors import UserError
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
        pattern: a path with *, ? and braces, relative to ``root``; or an address that webdataset opens (http, https,
            gs, hf and others), with braces only. Environment variables ($NAME, ${NAME}) are expanded.
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
            shards.add(place)
            continue
        found = glob.glob(place)
        if not found:
            what = "data.root and the pattern" if folder else "the pattern"
            raise UserError(f"no shard matches {place}; check {what}")
        # Absolute, so that a file whose name begins with "pipe:" is never taken for a command.
        shards.update(os.path.abspath(name) for name in found)
    return sorted(shards)


def _check_address(address: str, allow_pipe: bool) -> None:
    from webdataset.gopen import gopen_schemes

    kind, name = scheme(address), describe(address)
    if kind == "pipe":
        if not allow_pipe:
            raise UserError(
                f"{name}: would run a command, and that is not allowed; give a path or an address, "
                "or data.allow_pipe=true if you trust it"
            )
        return
    known = sorted({"file", *gopen_schemes} - {"__default__", "pipe"})
    if kind not in known:
        raise UserError(f"{name}: webdataset does not open {kind}; it opens {', '.join(known)}")
    if "*" in address:
        raise UserError(f"{name}: what lies at an address cannot be listed; write the numbers as {{000..031}}, not *")


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
        broken_limit: see `refuse_corrupt`.

    Raises:
        UserError: no file matches; no key fits; not one sample is complete, or too few are (names a file, a key
            and what it lacks).
    """
    samples: list[Sample] = []
    broken: list[str] = []
    others = 0
    for shard in expand(pattern, root, allow_pipe):
        for raw in raw_samples(shard, broken):
            if not fnmatchcase(raw["__key__"], keys):
                others += 1
                continue
            sample = usable_sample(raw, shard, pair, broken, targets)
            if sample is not None:
                samples.append(sample)
    if broken:
        rest = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        log.warning("%s: %d samples left out: %s%s", pattern, len(broken), "; ".join(broken[:NAMED]), rest)
    if others and not samples and not broken:
        raise UserError(f"{pattern}: no key of its {others} samples fits the pattern {keys!r}")
    if not samples:
        raise UserError(f"{pattern}: no usable sample; {broken[0] if broken else 'the shards are empty'}")
    refuse_corrupt(pattern, len(samples), len(broken), broken[-1] if broken else "", broken_limit)
    return Source(samples, broken)


def refuse_corrupt(name: str, good: int, broken: int, last: str, limit: float) -> None:
    """UserError when of ``good`` and ``broken`` samples more than the share ``limit`` are broken; a few always may be.

    Args:
        name, last: what was read, and the last line about a broken one, for the message.
    """
    if broken > max(BROKEN_FREE, limit * (good + broken)):
        raise UserError(
            f"{name}: {broken} broken to {good} usable samples, the last: {last}; "
            "mend the shards or raise data.broken_limit"
        )


def raw_samples(shard: str, broken: list[str]) -> Iterator[dict[str, Any]]:
    """webdataset's groups of members with one key, in the shard's order; what it cannot read is noted and skipped.

    Args:
        shard: an absolute path or an address, from `expand`.
        broken: gets a line for each member that cannot be read and for a shard that cannot be opened or ends early.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    name = describe(shard)

    def note(error: Exception) -> bool:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else next(iter(error.args), "")
        broken.append(f"{name}: {str(reason).split(' @ ')[0] or type(error).__name__}")
        return True

    try:
        stream = _open(shard)
    except Exception as error:  # whatever a protocol's library raises: the shard is skipped like a broken one
        note(error)
        return
    # An address is read from the output of a process (curl and others). Its exit code is asked for once, at the end:
    # webdataset's Pipe asks at every read, and whether the process has ended by then is a matter of luck.
    # What follows the end of the tar is not read, so a broken pipe (-13: SIGPIPE) is no error.
    process = getattr(stream, "proc", None)
    output = None if process is None else ProcessOutput(process, {*stream.ignore_status, -13})
    ended = False
    try:
        with stream if output is None else io.BufferedReader(output) as body:
            yield from group_by_keys(tar_file_expander([{"url": shard, "stream": body}], handler=note), handler=note)
        ended = True
    finally:
        if output is not None:
            if not ended:
                output.process.kill()
            if (reason := output.finish()) and ended:
                broken.append(f"{name}: not read to its end, {reason}")


def _open(shard: str) -> Any:
    """As webdataset opens it, but with a short limit on how often a busy server is asked again."""
    from webdataset.gopen import Pipe, gopen

    if scheme(shard) not in ("http", "https"):
        return gopen(shard)
    if shutil.which("curl") is None:
        raise OSError("curl is not installed, and addresses are read with it")
    patience = ["--connect-timeout", "30", "--retry", "3", "--retry-delay", "2"]
    # -g: brackets in an address are no pattern.
    return Pipe(["curl", *patience, "-f", "-s", "-L", "-g", shard], mode="rb", bufsize=8192, ignore_status=[141, 23])


def media_of(raw: Mapping[str, Any], endings: Collection[str]) -> bytes | list[bytes] | None:
    """What a sample has of a modality: the content of its file, a list where KEY.2.jpg, KEY.3.jpg, ... follow KEY.jpg.

    Args:
        raw: from `raw_samples`.
        endings: of the modality's files, without the dot.

    Raises:
        ValueError: of several files one is empty, or a number is left out.
    """
    files: dict[int, dict[str, bytes]] = {}
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
        raw, shard: from `raw_samples`.
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
        about = dict(json.loads(members.get("json", b"{}")))
        found = about.get("captions") or []
        captions = [caption for caption in ([found] if isinstance(found, str) else found) if isinstance(caption, str)]
    except (ValueError, TypeError, RecursionError) as error:
        broken.append(f"{name}: {key}.json cannot be read ({error})")
        readable = False
    if not captions:
        captions = [members.get("txt", b"").decode("utf-8", errors="replace")]
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
    if "text" in pair and not inputs["text"]:
        if readable:
            broken.append(f"{name}: {key} has no caption (a .txt, or captions in a .json)")
    elif lacking := [modality for modality in pair if modality not in inputs]:
        broken.append(f"{name}: {key} has no {' and no '.join(lacking)} file")
    elif lacking := [target for target in targets if target not in known_targets]:
        where = f" (a .{MASK})" if lacking == ["mask"] else " in its .json"
        broken.append(f"{name}: {key} has no {' and no '.join(lacking)}{where}")
    elif wrong := wrong_target(known_targets, targets):
        broken.append(f"{name}: {key}: {wrong}")
    else:
        return Sample(key, name, inputs, known_targets)
    return None
