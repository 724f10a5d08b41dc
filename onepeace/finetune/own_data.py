"""A user's folder or table: its usable samples, and whether they are enough to learn from."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from onepeace.datasets.embedded import EmbeddedFile, Unpacked
from onepeace.datasets.layout import Record, Skipped, skipped
from onepeace.datasets.pairs import from_source, media
from onepeace.embed.stream import decode_ahead
from onepeace.errors import UsageError, UserError
from onepeace.processors import PROCESSORS

FEWEST_PAIRS = 20
"""Minimum number of items: with fewer, the held-out part is too small to measure anything, and the model overfits."""
FEWEST_OF_A_CLASS = 5
AHEAD = 32


@dataclass(frozen=True)
class OwnData:
    """Usable samples by their modalities, and samples that could not be used."""

    records: dict[tuple[str, ...], list[Record]]
    """Samples by modalities, such as ("image", "text"); a class name counts as text."""
    left_out: list[Skipped]
    unpacked: Path | None = None
    """Folder of the files, if they lay in the cells of a table."""

    @property
    def count(self) -> int:
        return sum(map(len, self.records.values()))

    @property
    def labels(self) -> list[str]:
        """Class names, sorted; empty if not all samples have one."""
        found = {record.label for records in self.records.values() for record in records}
        return [] if None in found else sorted(found)

    def described(self) -> str:
        """The files that were found, in words."""
        kinds = [f"{len(records)} {plural(keys, not self.labels)}" for keys, records in self.records.items()]
        classes = f" in {len(self.labels)} classes" if self.labels else ""
        without = sum(record.label is None for records in self.records.values() for record in records)
        if 0 < without < self.count:
            classes = f"; labels are not used, as {without} of {self.count} items lack one"
        return f"{', '.join(kinds)}{classes}"


def plural(keys: Sequence[str], captions: bool = True) -> str:
    """Name of samples by modalities, such as "images with captions"; without ``captions``, their text is a label."""
    words = {"image": "images", "audio": "sounds", "video": "videos", "text": "captions"}
    first, *others = (words.get(key, key) for key in keys if captions or key != "text")
    return f"{first}{' with ' * bool(others)}{' and '.join(others)}"


def read_own_data(
    path: Path,
    modalities: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    unpacked: Path | None = None,
) -> OwnData:
    """Read a table or data set (columns image, audio, text, label), or a folder: pictures and sounds with captions in
    .txt files next to them, or one folder for each class.

    Every file is decoded once; what fails is left out and named with its file and line.

    Args:
        modalities: those of the model.
        columns, split: see `from_source`.
        unpacked: empty folder into which files are written that lie in cells; needed if there are such.

    Raises:
        UserError: there is nothing, or too little to learn from; the message says how much is needed.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    unpack = None if unpacked is None else Unpacked(unpacked)
    grouped: dict[tuple[str, ...], list[Record]] = {}
    left_out: list[Skipped] = []
    for _, record, failure in decode_ahead(from_source(path, columns, split), _check, ahead=AHEAD):
        if isinstance(record, Skipped):
            left_out.append(record)
            continue
        if failure is not None:
            left_out.append(skipped(record.name, failure))
            continue
        words = ["text"] if record.captions or record.label else []
        keys = (*[key for key in media() if key in record.inputs], *words)
        if unknown := [key for key in keys if key not in modalities]:
            left_out.append(Skipped(record.name, f"the model has no {unknown[0]}"))
            continue
        if len(keys) < 2:
            left_out.append(Skipped(record.name, f"has {keys[0]} alone: no caption, no label, no partner"))
            continue
        if unpack is not None:
            _unpack(record, unpack)
        grouped.setdefault(keys, []).append(record)
    merged = {keys: _merged(records) for keys, records in grouped.items()}
    data = _without_contradictions(OwnData(merged, left_out, unpacked))
    check_enough(path, data)
    return data


def _unpack(record: Record, unpack: Unpacked) -> None:
    """Replace the files that a record holds by their paths."""
    for key in media():
        file = record.inputs.get(key)
        if isinstance(file, EmbeddedFile):
            record.inputs[key] = unpack.write(file)


def _merged(records: Sequence[Record]) -> list[Record]:
    """Merge rows with the same files, as in tables of captions, into one sample with all their distinct captions."""
    merged: dict[Any, Record] = {}
    for record in records:
        key = (*map(str, media_of(record)), json.dumps(record.targets, sort_keys=True))
        first = merged.setdefault(key, record)
        first.inputs["text"] = list(dict.fromkeys([*first.captions, *record.captions]))
    return list(merged.values())


def _without_contradictions(data: OwnData) -> OwnData:
    """Leave out samples with a file that has several labels, if labels are used."""
    if not data.labels:
        return data
    labels = defaultdict[Path, set[str]](set)
    for record in chain.from_iterable(data.records.values()):
        for path in media_of(record):
            labels[path].add(record.label)
    kept, left_out = defaultdict[tuple[str, ...], list[Record]](list), list(data.left_out)
    for keys, own in data.records.items():
        for record in own:
            several = next((path for path in media_of(record) if len(labels[path]) > 1), None)
            if several is None:
                kept[keys].append(record)
            else:
                names = " and ".join(map(repr, sorted(labels[several])))
                left_out.append(Skipped(record.name, f"{several.name} has the labels {names}"))
    return OwnData(dict(kept), left_out, data.unpacked)


def _check(record: Record | Skipped) -> None:
    """Decode the files of a record, unless it was already left out."""
    if isinstance(record, Record):
        for key in media():
            if key in record.inputs:
                PROCESSORS[key]().decode(record.inputs[key])


def check_enough(path: Path, data: OwnData) -> None:
    """Raise UserError if there are too few samples to learn from, in total or of a class."""
    first = (
        f"; the first that cannot be used: {data.left_out[0].where}: {data.left_out[0].reason}" if data.left_out else ""
    )
    if not data.count:
        raise UserError(f"{path}: no usable pair of a picture or sound with a caption or a label{first}")
    if data.count < FEWEST_PAIRS:
        raise UserError(
            f"{path}: {data.count} usable items are too few to learn from; {FEWEST_PAIRS} are needed{first}"
        )
    if not data.labels:
        return
    counts = Counter(record.label for records in data.records.values() for record in records)
    if len(counts) < 2:
        raise UserError(f"{path}: all {data.count} items have the label {next(iter(counts))!r}; two classes are needed")
    rare = [label for label, count in counts.items() if count < FEWEST_OF_A_CLASS]
    if rare:
        number = counts[rare[0]]
        raise UserError(
            f"{path}: class {rare[0]!r} has {number} usable items, and {FEWEST_OF_A_CLASS} are needed to learn it and "
            f"to measure it; add some, or leave the class out{first}"
        )


def media_of(record: Record) -> list[Path]:
    """The files of a record."""
    return [record.inputs[key] for key in media() if key in record.inputs]
