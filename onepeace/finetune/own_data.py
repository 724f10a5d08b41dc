"""A user's folder or table: its usable samples, and whether they are enough to learn from."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from onepeace.datasets.layout import Record, Skipped, skipped
from onepeace.datasets.pairs import EmbeddedFile, from_source, media
from onepeace.datasets.parquet import is_parquet
from onepeace.errors import UsageError, UserError
from onepeace.processors import PROCESSORS
from onepeace.threads import decode_ahead

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
    """Folder of the files, if they were stored as bytes in cells of a table."""

    @property
    def all_records(self) -> list[Record]:
        return list(chain.from_iterable(self.records.values()))

    @property
    def count(self) -> int:
        return len(self.all_records)

    @property
    def labels(self) -> list[str]:
        """Class names, sorted; empty if not all samples have one."""
        labels = {record.label for record in self.all_records}
        return [] if None in labels else sorted(labels)

    @property
    def kinds(self) -> str:
        """The samples by their modalities, in words."""
        samples = [f"{len(records)} {plural(keys, not self.labels)}" for keys, records in self.records.items()]
        return ", ".join(samples) or "nothing usable"

    def described(self) -> str:
        """The samples and their classes, in words."""
        num_unlabelled = sum(record.label is None for record in self.all_records)
        if self.labels:
            return f"{self.kinds} in {len(self.labels)} classes"
        if num_unlabelled < self.count:
            return f"{self.kinds}; labels are not used, as {num_unlabelled} of {self.count} items lack one"
        return self.kinds


def plural(keys: Sequence[str], captions: bool = True) -> str:
    """Name of samples by modalities, such as "images with captions"; without ``captions``, their text is a label."""
    words = {"image": "images", "audio": "sounds", "video": "videos", "text": "captions"}
    first, *further = (words.get(key, key) for key in keys if captions or key != "text")
    return f"{first} with {' and '.join(further)}" if further else first


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
        unpacked: empty folder for files that are stored as bytes in cells of the table; needed if there are such.

    Raises:
        UsageError: there is no such file or folder; UserError: it cannot be read.
    """
    if not path.exists():
        raise UsageError("no such file or folder", where=path)
    unpack = None if unpacked is None else Unpacked(unpacked)
    grouped: dict[tuple[str, ...], list[Record]] = {}
    left_out: list[Skipped] = []
    for _, record, failure in decode_ahead(from_source(path, columns, split), _check, ahead=AHEAD):
        if isinstance(record, Skipped):
            left_out.append(record)
            continue
        keys = _modalities_of(record)
        reason = failure or _unusable(keys, modalities)
        if reason:
            left_out.append(skipped(record.name, reason))
            continue
        if unpack is not None:
            _unpack(record, unpack)
        grouped.setdefault(keys, []).append(record)
    merged = {keys: _merged(records) for keys, records in grouped.items()}
    return OwnData(merged, left_out, unpacked)


def _modalities_of(record: Record) -> tuple[str, ...]:
    """Modalities of a sample; a label counts as text."""
    keys = [key for key in media() if key in record.inputs]
    if record.captions or record.label:
        keys.append("text")
    return tuple(keys)


def _unusable(keys: Sequence[str], modalities: Sequence[str]) -> str:
    """Why a sample of some modalities is of no use to a model; "" if it is."""
    for key in keys:
        if key not in modalities:
            return f"the model has no {key}"
    if len(keys) < 2:
        return f"has only {keys[0]}: no caption, no label, nothing to pair it with"
    return ""


class Unpacked:
    """Folder into which files of cells are written; equal files are written once.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: dict[bytes, Path] = {}

    def write(self, file: EmbeddedFile) -> Path:
        """Write a file under its own path, or, if another one has that path, in a folder with a number.

        Raises:
            UserError: it cannot be written.
        """
        digest = hashlib.sha256(file).digest()
        if digest in self._paths:
            return self._paths[digest]
        path = self.folder / file.path
        if path.exists():
            path = self.folder / str(len(self._paths)) / file.path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
        except OSError as error:
            raise UserError(f"cannot be written ({error.strerror or error})", where=path) from error
        self._paths[digest] = path
        return path


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


def without_contradictions(data: OwnData) -> OwnData:
    """Leave out samples with a file that has several labels, if labels are used."""
    if not data.labels:
        return data
    labels_of_file = defaultdict[Path, set[str]](set)
    for record in data.all_records:
        for path in media_of(record):
            labels_of_file[path].add(record.label)
    kept = defaultdict[tuple[str, ...], list[Record]](list)
    left_out = list(data.left_out)
    for keys, records in data.records.items():
        for record in records:
            ambiguous = [path for path in media_of(record) if len(labels_of_file[path]) > 1]
            if not ambiguous:
                kept[keys].append(record)
                continue
            names = " and ".join(map(repr, sorted(labels_of_file[ambiguous[0]])))
            left_out.append(Skipped(record.name, f"{ambiguous[0].name} has the labels {names}"))
    return OwnData(dict(kept), left_out, data.unpacked)


def _check(record: Record | Skipped) -> None:
    """Decode the files of a record, unless it was already left out."""
    if isinstance(record, Record):
        for key in media():
            if key in record.inputs:
                PROCESSORS[key]().decode(record.inputs[key])


def check_enough(path: Path, data: OwnData) -> None:
    """Raise UserError if there are too few samples to learn from, in total or of a class."""
    first = ""
    if data.left_out:
        where, reason = data.left_out[0]
        first = f"; the first that cannot be used: {where}: {reason}"
    if not data.count:
        raise UserError(f"no usable pair of a picture or sound with a caption or a label{first}", where=path)
    if data.count < FEWEST_PAIRS:
        raise UserError(
            f"{data.count} usable items are too few to learn from; {FEWEST_PAIRS} are needed{first}", where=path
        )
    if not data.labels:
        return
    counts = Counter(record.label for record in data.all_records)
    if len(counts) < 2:
        raise UserError(
            f"all {data.count} items have the label {next(iter(counts))!r}; two classes are needed", where=path
        )
    rare = [label for label, count in counts.items() if count < FEWEST_OF_A_CLASS]
    if rare:
        number = counts[rare[0]]
        raise UserError(
            f"class {rare[0]!r} has {number} usable items, and {FEWEST_OF_A_CLASS} are needed to learn it and "
            f"to measure it; add some, or leave the class out{first}{folders_are_classes(path)}",
            where=path,
        )


def folders_are_classes(source: Path) -> str:
    """What a user is told whose folder of albums was taken for one of classes; "" for other sources."""
    if not source.is_dir() or is_parquet(source):
        return ""
    return "; each folder is taken as a class; to learn captions instead, put a.txt beside a.jpg, or give a table"


def media_of(record: Record) -> list[Path]:
    """The files of a record."""
    return [record.inputs[key] for key in media() if key in record.inputs]
