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
from dataclasses import asdict, dataclass
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
from onepeace.finetune.own_data import OwnData, check_enough, media_of, plural
from onepeace.index.groups import connected

MODEL = "tiny-fast"
"""Model whose vectors identify near copies, for any fine-tuned model; the cosines below apply to it."""
NEAR_COPY_COSINE = {"image": 0.94, "audio": 0.98}
"""Minimum cosine of two files that are near copies (docs/results/finetune.md)."""
BLOCK = 1024
"""Files that are compared with all others at once."""


def assign_groups(
    data: OwnData,
    source: Path,
    pattern: str | None = None,
) -> int:
    """Store the number of its group and the name of its file in the targets of every record.

    Records are joined, also transitively, if they share a file, or are near copies by the vectors of `MODEL`; with a
    pattern, instead of near copies, if it matches the same text in their paths.

    Args:
        source: the folder or table of the files; the pattern is matched against paths relative to it.
        pattern: a regular expression; its first group is compared, or the whole match if it has no group.

    Returns:
        The number of groups.

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
    groups = connected(len(records), pairs)
    for number, members in enumerate(groups):
        for index in members:
            records[index].targets[GROUP] = number
            records[index].targets[FILE] = paths[index][0]
    return len(groups)


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


@dataclass(frozen=True)
class Split:
    """Samples, and the part in which each of their groups is."""

    data: OwnData
    part_of_group: dict[int, str]
    parts: tuple[str, ...]
    """Names of the parts; `CHOOSE` is lacking if it would have fewer than `FEWEST_TO_CHOOSE` samples."""

    @classmethod
    def of(cls, data: OwnData) -> "Split":
        """Split grouped data: a fifth is held out, and a fifth of the rest is to choose by."""
        rest, held_out = hold_out(data.all_records)
        train, choose = hold_out(rest)
        records_by_part = {VAL: held_out, TRAIN: train, CHOOSE: choose}
        if len(choose) < FEWEST_TO_CHOOSE:
            records_by_part = {VAL: held_out, TRAIN: rest}
        part_of_group = {}
        for part, records in records_by_part.items():
            for record in records:
                part_of_group[record.targets[GROUP]] = part
        return cls(data, part_of_group, tuple(records_by_part))

    def records(self, part: str, modalities: tuple[str, ...]) -> list[Record]:
        """The samples of a part with these modalities."""
        samples = self.data.records[modalities]
        return [record for record in samples if self.part_of_group[record.targets[GROUP]] == part]

    def is_complete(self, modalities: tuple[str, ...]) -> bool:
        """Whether some samples with these modalities are trained on, and some are held out."""
        return bool(self.records(TRAIN, modalities) and self.records(VAL, modalities))


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
    """Read the contents of the shards of a folder.

    Raises:
        UserError: the file is of another version.
    """
    path = folder / SUMMARY
    content = json.loads(path.read_text(encoding="utf-8"))
    return build(SplitSummary, content, str(path))


def divide(
    data: OwnData,
    source: Path,
    pattern: str | None,
) -> tuple[Split, SplitSummary]:
    """Group and split the data, without modalities of which there are too few samples.

    Raises:
        UserError: nothing can be held out, or too little is left.
    """
    num_groups = assign_groups(data, source, pattern)
    split = Split.of(data)
    too_few = [modalities for modalities in data.records if not split.is_complete(modalities)]
    if too_few:
        split = Split.of(_without(data, too_few, source, pattern))
    return split, _summary(split, num_groups, pattern)


def _without(
    data: OwnData,
    too_few: Collection[tuple[str, ...]],
    source: Path,
    pattern: str | None,
) -> OwnData:
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
    remaining = OwnData(kept, left_out)
    check_enough(source, remaining)
    return remaining


def _summary(
    split: Split,
    num_groups: int,
    pattern: str | None,
) -> SplitSummary:
    data = split.data
    counts = {}
    held_out_labels: set[str | None] = set()
    for modalities in data.records:
        for part in split.parts:
            counts[f"{part}/{'+'.join(modalities)}"] = len(split.records(part, modalities))
        held_out_labels.update(record.label for record in split.records(VAL, modalities))
    return SplitSummary(
        files=data.described(),
        counts=counts,
        groups=num_groups,
        labels=data.labels,
        not_held_out=[label for label in data.labels if label not in held_out_labels],
        left_out=[list(skipped) for skipped in data.left_out],
        pattern=pattern,
    )


def write_shards(
    split: Split,
    summary: SplitSummary,
    folder: Path,
) -> None:
    """Write the parts below ``folder``: train/image+text-00000.tar, val/image+text-00000.tar, ...

    Files are copied unchanged. If the process is killed, the output is not used: shards appear only when complete, and
    parts.json, which describes them, is written last.
    """
    for modalities in split.data.records:
        name = "+".join(modalities)
        for part in split.parts:
            with new_shards(folder / part, name) as writer:
                for number, record in enumerate(split.records(part, modalities)):
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
