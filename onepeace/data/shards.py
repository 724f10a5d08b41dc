"""webdataset shards into memory, still encoded: a list of samples per source.

A shard is a .tar or .tar.gz with the members KEY.jpg (or any other file ending of a decoder), KEY.txt and KEY.json.
The caption list is "captions" in the json, else the text file; "label" in the json is a class name. Sets that fit in
memory are read whole, once; a shard that is partly broken gives what it still holds. Next file: batches.py.
"""

import glob
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.errors import UserError
from onepeace.media import DECODERS

log = logging.getLogger(__name__)

NAMED = 3
"""How many broken members are named in a warning; the rest is counted."""

Sample = dict[str, Any]
"""key, source (the shard's file), one entry of encoded bytes per modality but text, captions (list), label or None."""


class Source(NamedTuple):
    """What one shard pattern held."""

    name: str
    """The pattern, for messages."""
    samples: list[Sample]
    broken: list[str]
    """One line per member or sample that could not be used: file, key, reason."""


def shard_files(pattern: str, root: str | Path | None = None) -> list[Path]:
    """The files of a pattern ("train/image_text/*.tar.gz", "pairs-{000..031}.tar"), sorted; none is a `UserError`.

    The pattern is relative to ``root``, in which environment variables ($NAME, ${NAME}) are expanded.
    """
    import braceexpand  # comes with webdataset

    folder = os.path.expandvars(os.path.expanduser(str(root or "")))
    if "$" in folder:
        raise UserError(f"data.root is {root}, and that variable is not set; set it, or give data.root=FOLDER")
    files: set[Path] = set()
    for part in braceexpand.braceexpand(os.path.expandvars(pattern)):
        found = glob.glob(os.path.join(folder, part))
        if not found:
            raise UserError(f"no shard matches {os.path.join(folder, part)}; check data.root and the pattern")
        files.update(Path(name) for name in found)
    return sorted(files)


def read_source(pattern: str, pair: Sequence[str], root: str | Path | None = None) -> Source:
    """Read every shard of a pattern into memory.

    Args:
        pattern, root: see `shard_files`.
        pair: the modalities each sample must have; "text" are its captions, others a member that their decoder reads.

    Raises:
        UserError: no file matches, or not one sample is complete (names a file, a key and what it lacks).
    """
    known = {m: sorted(suffix.lstrip(".") for suffix in DECODERS[m].suffixes) for m in pair if m != "text"}
    samples: list[Sample] = []
    broken: list[str] = []
    for path in shard_files(pattern, root):
        for raw in _raw_samples(path, broken):
            sample = _sample(raw, path, known, broken)
            if "text" in pair and not sample["captions"]:
                broken.append(f"{path}: {sample['key']} has no caption (a .txt, or captions in a .json)")
            elif lacking := [m for m in known if m not in sample]:
                broken.append(f"{path}: {sample['key']} has no {' and no '.join(lacking)} file")
            else:
                samples.append(sample)
    if broken:
        rest = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        log.warning("%s: %d broken: %s%s", pattern, len(broken), "; ".join(broken[:NAMED]), rest)
    if not samples:
        raise UserError(f"{pattern}: no usable sample; {broken[0] if broken else 'the shards are empty'}")
    return Source(pattern, samples, broken)


def _raw_samples(path: Path, broken: list[str]) -> Iterator[dict[str, Any]]:
    """webdataset's groups of members with one key; what it cannot read is noted and skipped."""
    import webdataset as wds

    def note(error: Exception) -> bool:
        reason = error.args[0] if error.args else type(error).__name__
        broken.append(f"{path}: {str(reason).split(' @ ')[0] or type(error).__name__}")
        return True

    # An absolute path: webdataset runs a name that begins with "pipe:" in a shell.
    yield from wds.tariterators.tarfile_samples([{"url": str(path.absolute())}], handler=note)


def _sample(raw: dict[str, Any], path: Path, known: Mapping[str, Iterable[str]], broken: list[str]) -> Sample:
    key = raw["__key__"]
    # "KEY.thumb.jpg": the last ending says what it is.
    members = {name.rpartition(".")[2]: data for name, data in raw.items() if not name.startswith("__")}
    about: dict[str, Any] = {}
    captions: list[str] = []
    try:
        about = dict(json.loads(members.get("json", b"{}")))
        captions = [caption for caption in about.get("captions", []) if isinstance(caption, str)]
    except (ValueError, TypeError) as error:
        broken.append(f"{path}: {key}.json cannot be read ({error})")
    if not captions:
        captions = [members.get("txt", b"").decode("utf-8", errors="replace")]
    label = about.get("label")
    sample: Sample = {
        "key": key,
        "source": str(path),
        "captions": [caption.strip() for caption in captions if caption.strip()],
        "label": label if isinstance(label, str) else None,
    }
    for modality, suffixes in known.items():
        found = [members[suffix] for suffix in suffixes if members.get(suffix)]
        if found:
            sample[modality] = found[0]
    return sample
