"""The parts of the data: to train on, to choose weights by, and held out; they consist of whole groups of files.

A group is files that belong together: near copies, or files whose paths match a pattern with the same text. A model
that was trained on a file recognises its near copies: other frames of a video, cuts of a recording, a burst of
photographs.
"""

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onepeace.config import build
from onepeace.data.write import ShardWriter, new_shards
from onepeace.datasets.layout import Record, Skipped
from onepeace.datasets.pairs import media
from onepeace.embed.embedder import load
from onepeace.errors import UsageError, UserError
from onepeace.evaluate.protocols.protocol import encode
from onepeace.evaluate.ranking import FILE, GROUP
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import read_bytes
from onepeace.finetune.own_data import OwnData, check_enough, media_of, plural, without_contradictions
from onepeace.index.groups import connected

MODEL = "tiny-fast"
"""Model whose vectors identify near copies, for any fine-tuned model; the cosines below apply to it."""
NEAR_COPY_COSINE = {"image": 0.94, "audio": 0.98}
"""Minimum cosine of two files that are near copies (docs/results/finetune.md)."""
BLOCK = 1024
"""Files that are compared with all others at once."""


def assign_groups(data: OwnData, source: Path, pattern: str | None = None) -> None:
    """Store the number of its group and the name of its file in the targets of every record.

    Records are joined, also transitively, if they share a file, or are near copies by the vectors of `MODEL`; with a
    pattern, instead of near copies, if it matches the same text in their paths.

    Args:
        source: the folder or table of the files; the pattern is matched against paths relative to it.
        pattern: a regular expression; its first group is compared, or the whole match if it has no group.

    Raises:
        UsageError: not a regular expression, or one that matches no path.
    """
    records = data.all_records
    top = data.unpacked or (source if source.is_dir() else source.parent)
    paths = [_relative_paths(record, top) for record in records]
    pairs = _pairs_with_common_text(paths)
    if pattern is None:
        pairs += _pairs_of_near_copies(records)
    else:
        pairs += _pairs_with_common_text(_matched_texts(pattern, paths))
    for number, members in enumerate(connected(len(records), pairs)):
        for index in members:
            records[index].targets[GROUP] = number
            records[index].targets[FILE] = paths[index][0]


def _relative_paths(record: Record, top: Path) -> list[str]:
    return [os.path.relpath(path, top) for path in media_of(record)]


def _pairs_of_near_copies(records: Sequence[Record]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for modality, cosine in NEAR_COPY_COSINE.items():
        indices = [index for index, record in enumerate(records) if modality in record.inputs]
        if len(indices) < 2:
            continue
        model = load(MODEL, modalities=[modality])
        files = [records[index].inputs[modality] for index in indices]
        vectors = encode(model, modality, files)
        for i, j in near_copies(vectors, cosine):
            pairs.append((indices[i], indices[j]))
    return pairs


def near_copies(vectors: NDArray, cosine: float) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of unit vectors (n, E) whose cosine is at least ``cosine``."""
    pairs = []
    for start in range(0, len(vectors), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        for row, column in np.argwhere(cosines >= cosine).tolist():
            if start + row < column:
                pairs.append((start + row, column))
    return pairs


def _matched_texts(pattern: str, paths: Sequence[Sequence[str]]) -> list[list[str]]:
    """The texts that a pattern matches in the paths of each record."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--group {pattern!r}: not a regular expression ({error})") from error
    compared = 1 if expression.groups else 0
    texts: list[list[str]] = []
    for paths_of_record in paths:
        texts_of_record = []
        for path in paths_of_record:
            match = expression.search(path)
            if match is not None:
                texts_of_record.append(match[compared])
        texts.append(texts_of_record)
    if not any(texts):
        raise UsageError(f"--group {pattern!r}: matches no path, such as {paths[0][0]}")
    return texts


def _pairs_with_common_text(texts: Sequence[Iterable[str]]) -> list[tuple[int, int]]:
    """Pairs of numbers with a text in common: the first with the text, and each with it."""
    pairs = []
    first_with: dict[str, int] = {}
    for number, texts_of_record in enumerate(texts):
        for text in texts_of_record:
            pairs.append((first_with.setdefault(text, number), number))
    return pairs


TRAIN = "train"
VAL = "val"
"""The held-out part."""
CHOOSE = "choose"
"""The part by which the share of the new weights is chosen (average.py)."""
HELD_OUT = 0.2
"""Share of the items that is held out, and of the rest, that weights are chosen by."""
MOST_HELD_OUT = 1000
"""Maximum number of held-out items; more would hardly narrow the intervals."""
FEWEST_TO_CHOOSE = 12
"""Number of items to choose by below which nothing is chosen, and all items not held out are trained on."""
SUMMARY = "parts.json"


Parts = dict[str, dict[tuple[str, ...], list[Record]]]
"""Samples by part and modalities; `CHOOSE` is lacking if it would have fewer than `FEWEST_TO_CHOOSE` samples."""


def parts_of(data: OwnData) -> Parts:
    """Split grouped data: a fifth is held out, and a fifth of the rest is to choose by."""
    rest, held_out = hold_out(data.all_records)
    train, choose = hold_out(rest)
    records_by_part = {VAL: held_out, TRAIN: train, CHOOSE: choose}
    if len(choose) < FEWEST_TO_CHOOSE:
        records_by_part = {VAL: held_out, TRAIN: rest}
    part_of_group = {}
    for part, records in records_by_part.items():
        part_of_group.update({record.targets[GROUP]: part for record in records})
    parts: Parts = {part: {keys: [] for keys in data.records} for part in records_by_part}
    for keys, records in data.records.items():
        for record in records:
            parts[part_of_group[record.targets[GROUP]]][keys].append(record)
    return parts


def hold_out(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Split records into a larger and a held-out part, deterministically by a hash of the file names.

    About the same share of each class is held out, in whole groups. A group with most of the files of a class is never
    held out.
    """
    members: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        members[record.targets[GROUP]].append(record)
    share = min(HELD_OUT, MOST_HELD_OUT / max(1, len(records)))
    class_sizes = Counter(map(_class_of, records))
    num_held_out = Counter[Any]()
    held_out_groups = set()
    first_hashes = {group: min(map(_hash, records_of_group)) for group, records_of_group in members.items()}
    for group in sorted(members, key=first_hashes.__getitem__):
        group_sizes = Counter(map(_class_of, members[group]))
        if _fits(group_sizes, num_held_out, class_sizes, share):
            num_held_out += group_sizes
            held_out_groups.add(group)
    rest: list[Record] = []
    held_out: list[Record] = []
    for record in records:
        part = held_out if record.targets[GROUP] in held_out_groups else rest
        part.append(record)
    return rest, held_out


def _fits(
    group_sizes: Counter[Any],
    num_held_out: Counter[Any],
    class_sizes: Counter[Any],
    share: float,
) -> bool:
    """Whether a group brings each of its classes nearer to the share, or is the first of a class and at most half."""
    for label, size in group_sizes.items():
        is_nearer = num_held_out[label] + size / 2 <= share * class_sizes[label]
        is_first = not num_held_out[label] and 2 * size <= class_sizes[label]
        if not is_nearer and not is_first:
            return False
    return True


def _class_of(record: Record) -> tuple[Any, ...]:
    """What is split evenly: the label together with the modalities."""
    return (record.label, *(key for key in media() if key in record.inputs))


def _hash(record: Record) -> bytes:
    return hashlib.sha256(Path(record.targets[FILE]).name.encode()).digest()


@dataclass(frozen=True)
class SplitSummary:
    """Contents of the parts of the data, as stored in parts.json."""

    files: str
    """The usable files, in words."""
    counts: dict[str, int]
    """Number of samples by part and combination of modalities, such as "train/image+text"."""
    groups: int
    """Number of groups."""
    labels: list[str]
    """Class names, sorted; empty if not all samples have one."""
    not_held_out: list[str]
    """Classes of which nothing is held out, as most of their files are one group."""
    left_out: list[list[str]]
    """Name and reason of each sample that was left out."""
    pattern: str | None = None
    """Regular expression by which files were grouped (--group); without one, near copies are."""

    @property
    def meaning_of_groups(self) -> str:
        """The groups, in words."""
        if self.pattern is None:
            return "near copies"
        return "files whose paths match --group with the same text"

    def combinations(self, part: str) -> list[str]:
        """The combinations of modalities of the samples of a part, such as "image+text"."""
        return [name.removeprefix(f"{part}/") for name in self._names(part) if self.counts[name]]

    def count(self, part: str) -> int:
        """Number of samples in a part."""
        return sum(self.counts[name] for name in self._names(part))

    def _names(self, part: str) -> list[str]:
        return [name for name in self.counts if name.startswith(f"{part}/")]

    def described(self) -> str:
        """How the data are divided, in words."""
        sizes = [f"{self.count(TRAIN)} to train on"]
        if self.count(CHOOSE):
            sizes.append(f"{self.count(CHOOSE)} to choose the average by")
        sizes.append(f"{self.count(VAL)} held out")
        text = f"{', '.join(sizes)}, in whole groups of {self.meaning_of_groups} ({self.groups} groups)"
        if self.not_held_out:
            text += f"; nothing is held out of {', '.join(self.not_held_out)}, as most of it is one group"
        return text


def read_summary(folder: Path) -> SplitSummary:
    """Read the contents of the shards of a folder; fields of a later version are ignored.

    Raises:
        UserError: a field is lacking, or has a wrong value.
    """
    path = folder / SUMMARY
    content = json.loads(path.read_text(encoding="utf-8"))
    known = {field.name for field in fields(SplitSummary)}
    return build(SplitSummary, {name: value for name, value in content.items() if name in known}, str(path))


def divide(data: OwnData, source: Path, pattern: str | None) -> tuple[Parts, SplitSummary]:
    """Group and split the data, without files that have several labels, and without modalities of too few samples.

    Whether labels are used, and all that follows from it, is decided by what is left.

    Raises:
        UserError: nothing can be held out, or too little is left.
    """
    assign_groups(data, source, pattern)
    data = without_contradictions(data)
    parts = parts_of(data)
    while too_few := [keys for keys, held_out in parts[VAL].items() if not held_out]:
        data = without_contradictions(_without(data, too_few, source, pattern))
        parts = parts_of(data)
    check_enough(source, data)
    return parts, _summary(data, parts, pattern)


def _without(data: OwnData, too_few: Collection[tuple[str, ...]], source: Path, pattern: str | None) -> OwnData:
    kept = {modalities: records for modalities, records in data.records.items() if modalities not in too_few}
    if not kept:
        reason = "near copies of one another; give --group a" if pattern is None else "one --group; give it another"
        raise UserError(
            f"nothing can be held out, as most files are {reason} regular expression that matches what the paths of "
            "files that belong together have in common",
            where=source,
        )
    left_out = list(data.left_out)
    for modalities in too_few:
        records = data.records[modalities]
        samples = f"{len(records)} {plural(modalities, not data.labels)}"
        reason = f"{samples} are too few, or too much alike, to hold some out"
        left_out += [Skipped(record.name, reason) for record in records]
    return OwnData(kept, left_out, data.unpacked)


def _summary(data: OwnData, parts: Parts, pattern: str | None) -> SplitSummary:
    counts = {}
    for keys in data.records:
        for part, records in parts.items():
            counts[f"{part}/{'+'.join(keys)}"] = len(records[keys])
    held_out_labels = {record.label for records in parts[VAL].values() for record in records}
    return SplitSummary(
        files=data.described(),
        counts=counts,
        groups=len({record.targets[GROUP] for record in data.all_records}),
        labels=data.labels,
        not_held_out=[label for label in data.labels if label not in held_out_labels],
        left_out=[list(skipped) for skipped in data.left_out],
        pattern=pattern,
    )


def write_shards(parts: Parts, summary: SplitSummary, folder: Path) -> None:
    """Write the parts below ``folder``: train/image+text-00000.tar, val/image+text-00000.tar, ...

    Files are copied unchanged. If the process is killed, the output is not used: shards appear only when complete, and
    parts.json, which describes them, is written last.
    """
    for part, records_by_kind in parts.items():
        for keys, records in records_by_kind.items():
            name = "+".join(keys)
            with new_shards(folder / part, name) as writer:
                for number, record in enumerate(records):
                    _write_sample(writer, f"{name}_{number:08d}", record)
    content = json.dumps(asdict(summary), ensure_ascii=False, indent=1)
    write_text_atomic(folder / SUMMARY, f"{content}\n")


def _write_sample(writer: ShardWriter, key: str, record: Record) -> None:
    files = {}
    for path in media_of(record):
        ending = path.suffix.lower().removeprefix(".")
        files[ending] = read_bytes(path)
    captions = record.captions
    if not captions and record.label:
        captions = [record.label]
    writer.write(key, files, captions, targets=record.targets, about={"source": record.source})
