"""The parts of the data: to train on, to choose weights by, and held out.

A model that was trained on a file recognises its near copies: other frames of a video, cuts of a recording, a burst of
photographs. So files are split by groups, within each class: all files of a group are in one part.
"""

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onepeace.data.shard_writer import new_shards
from onepeace.datasets.layout import Record, Skipped
from onepeace.datasets.pairs import media
from onepeace.embed.embedder import load
from onepeace.errors import UsageError, UserError
from onepeace.evaluate.protocols.protocol import encode
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import read_bytes
from onepeace.finetune.own_data import OwnData, check_enough, media_of, plural
from onepeace.index.groups import connected

BY = "tiny-fast"
"""Model whose vectors identify near copies, for any fine-tuned model; the cosines below apply to it."""
NEAR = {"image": 0.94, "audio": 0.94}
"""Minimum cosine of two files that are near copies (docs/results/finetune.md)."""
BLOCK = 1024
"""Files that are compared with all others at once."""
HELD_OUT = 0.2
MOST_HELD_OUT = 1000
"""Maximum number of held-out items; more would hardly narrow the intervals."""
FEWEST_TO_CHOOSE = 12
"""Number of items to choose by below which nothing is chosen, and all items not held out are trained on."""
GROUP, FILE = "group", "file"
"""Targets of a sample in a shard: the number of its group, and the name of its file."""


def grouped(data: OwnData, source: Path, pattern: str | None = None) -> int:
    """Assign a group number to every record; returns the number of groups.

    Records are joined, also transitively, if they share a file, or are near copies by the vectors of `BY`; with a
    pattern, instead of near copies, if it matches the same text in their paths.

    Args:
        source: the folder or table of the files; the pattern is matched against paths relative to it.
        pattern: a regular expression; its first group is compared, or the whole match if it has no group.

    Raises:
        UserError: not a regular expression, or one that matches no path.
    """
    records = [record for own in data.records.values() for record in own]
    top = data.unpacked or (source if source.is_dir() else source.parent)
    shown = [[os.path.relpath(path, top) for path in media_of(record)] for record in records]
    pairs = _sharing(shown)
    if pattern is not None:
        pairs += _sharing(_matches(pattern, shown))
    else:
        for key, cosine in NEAR.items():
            own = [i for i, record in enumerate(records) if key in record.inputs]
            if len(own) > 1:
                model = load(BY, modalities=[key])
                files = [records[i].inputs[key] for i in own]
                pairs += [(own[i], own[j]) for i, j in near_copies(encode(model, key, files), cosine)]
    groups = connected(len(records), pairs)
    for number, members in enumerate(groups):
        for i in members:
            records[i].targets.update({GROUP: number, FILE: shown[i][0]})
    return len(groups)


def _matches(pattern: str, shown: Sequence[Sequence[str]]) -> list[list[str]]:
    """The texts that a pattern matches in the paths of each record."""
    try:
        found = [[m[m.re.groups and 1] for path in paths if (m := re.search(pattern, path))] for paths in shown]
    except re.error as error:
        raise UsageError(f"--group {pattern!r}: not a regular expression ({error})") from error
    if not any(found):
        raise UsageError(f"--group {pattern!r}: matches no path, as {shown[0][0]}")
    return found


def _sharing(keys: Sequence[Iterable[str]]) -> list[tuple[int, int]]:
    """Pairs of numbers with a key in common: the first with the key, and each with it."""
    first: dict[str, int] = {}
    return [(first.setdefault(key, number), number) for number, own in enumerate(keys) for key in own]


def near_copies(vectors: np.ndarray, cosine: float) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of unit vectors (n, E) whose cosine is at least ``cosine``."""
    found = []
    for start in range(0, len(vectors), BLOCK):
        i, j = np.nonzero(vectors[start : start + BLOCK] @ vectors.T >= cosine)
        found += [(a, b) for a, b in zip((start + i).tolist(), j.tolist(), strict=True) if a < b]
    return found


def split(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Split records into a training and a held-out part, deterministically by a hash of the file names.

    About the same share of each class is held out, in whole groups. A group with most of the files of a class is never
    held out.
    """
    members: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        members[record.targets[GROUP]].append(record)
    share = min(HELD_OUT, MOST_HELD_OUT / max(1, len(records)))
    total, held = Counter(map(_class, records)), Counter[Any]()
    numbers = set()
    for number in sorted(members, key=lambda number: min(map(_hash, members[number]))):
        counts = Counter(map(_class, members[number]))
        if all(held[one] + n / 2 <= share * total[one] or (not held[one] and 2 * n <= total[one])
               for one, n in counts.items()):  # fmt: skip
            held += counts
            numbers.add(number)
    train = [record for record in records if record.targets[GROUP] not in numbers]
    return train, [record for record in records if record.targets[GROUP] in numbers]


def _class(record: Record) -> tuple[Any, ...]:
    return (record.label, *(key for key in media() if key in record.inputs))


def _hash(record: Record) -> bytes:
    return hashlib.sha256(Path(record.targets[FILE]).name.encode()).digest()


def parts_of(data: OwnData) -> dict[tuple[str, ...], dict[str, list[Record]]]:
    """Records of each kind in "train", "val" (held out) and "choose", a fifth of the rest, by which the weights are
    chosen (average.py); "choose" is omitted if it would have fewer than `FEWEST_TO_CHOOSE` records."""
    rest, held_out = split([record for own in data.records.values() for record in own])
    train, choose = split(rest)
    parts = {"val": held_out, "train": train, "choose": choose}
    if len(choose) < FEWEST_TO_CHOOSE:
        parts = {"val": held_out, "train": rest}
    of = {record.targets[GROUP]: part for part, own in parts.items() for record in own}
    return {
        keys: {part: [record for record in own if of[record.targets[GROUP]] == part] for part in parts}
        for keys, own in data.records.items()
    }


PARTS = "parts.json"


@dataclass(frozen=True)
class SplitSummary:
    """Contents of the parts of the data, as stored in parts.json."""

    found: str
    """The files that were found, in words."""
    counts: dict[str, int]
    """Number of samples by part and kind, such as "train/image+text"."""
    groups: int
    labels: list[str]
    """Class names, sorted; empty if not all samples have one."""
    not_held_out: list[str]
    """Classes of which nothing is held out, as most of their files are one group."""
    left_out: list[Sequence[str]]
    """Place and reason of each sample that was left out."""
    pattern: str | None = None
    """Regular expression by which files were grouped (--group); without one, near copies are."""

    @property
    def kind(self) -> str:
        """The groups, in words."""
        return "near copies" if self.pattern is None else "files whose paths match --group with the same text"

    def pairs(self, part: str) -> list[str]:
        """The kinds of samples in a part, such as "image+text"."""
        return [name.partition("/")[2] for name, count in self.counts.items() if count and name.startswith(f"{part}/")]

    def count(self, part: str) -> int:
        """Number of samples in a part."""
        return sum(count for name, count in self.counts.items() if name.startswith(f"{part}/"))

    def described(self) -> str:
        """How the data are divided, in words."""
        choose = f"{self.count('choose')} to choose the average by, " * bool(self.count("choose"))
        text = f"{self.count('train')} to train on, {choose}{self.count('val')} held out, in whole groups of "
        text += f"{self.kind} ({self.groups} groups)"
        if self.not_held_out:
            text += f"; nothing is held out of {', '.join(self.not_held_out)}, most of which is one group"
        return text


def read_parts(folder: Path) -> SplitSummary:
    """Read the contents of the shards of a folder."""
    return SplitSummary(**json.loads((folder / PARTS).read_text(encoding="utf-8")))


def divide(data: OwnData, source: Path, pattern: str | None) -> tuple[OwnData, SplitSummary]:
    """Group the data (`grouped`), and remove kinds that are too small; returns the data and contents of the parts."""
    groups = grouped(data, source, pattern)
    data = _without_small_kinds(data, source, pattern)
    parts = parts_of(data)
    counts = {f"{part}/{'+'.join(keys)}": len(own) for keys, found in parts.items() for part, own in found.items()}
    held = {record.label for found in parts.values() for record in found["val"]}
    lacking = [label for label in data.labels if label not in held]
    return data, SplitSummary(
        data.described(), counts, groups, data.labels, lacking, [list(one) for one in data.left_out], pattern
    )


def _without_small_kinds(data: OwnData, source: Path, pattern: str | None) -> OwnData:
    kept, left_out = dict(data.records), list(data.left_out)
    for keys, parts in parts_of(data).items():
        if not parts["train"] or not parts["val"]:
            own = kept.pop(keys)
            reason = f"{len(own)} {plural(keys, not data.labels)} are too few, or too much alike, to hold some out"
            left_out += [Skipped(record.name, reason) for record in own]
    if not kept:
        why = "near copies of one another; give --group a" if pattern is None else "one --group; give it another"
        raise UserError(
            f"{source}: nothing can be held out, as most files are {why} regular expression, of what files that belong "
            "together have in common in their paths"
        )
    data = OwnData(kept, left_out)
    check_enough(source, data)
    return data


def write_shards(data: OwnData, parts: SplitSummary, folder: Path) -> None:
    """Write the parts of every kind below ``folder``: train/image+text-00000.tar, val/image+text-00000.tar, ...

    Files are copied unchanged. If the process is killed, the output is not used: shards appear only when complete, and
    parts.json, which describes them, is written last.
    """
    for keys, found in parts_of(data).items():
        for part, chosen in found.items():
            name = "+".join(keys)
            with new_shards(folder / part, name) as writer:
                for number, record in enumerate(chosen):
                    files = {p.suffix.lower().removeprefix("."): read_bytes(p) for p in media_of(record)}
                    captions = record.captions or ([record.label] if record.label else [])
                    about = {"source": record.source}
                    writer.write(f"{name}_{number:08d}", files, captions, targets=record.targets, about=about)
    write_text_atomic(folder / PARTS, json.dumps(asdict(parts), ensure_ascii=False, indent=1) + "\n")
