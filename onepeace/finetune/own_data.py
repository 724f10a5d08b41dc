"""A user's folder or table: what is in it, whether it is enough to learn from, and its parts as shards."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.data.shard_writer import ShardWriter
from onepeace.datasets.layout import Record, Skipped, skipped
from onepeace.datasets.pairs import from_folder, from_table, media
from onepeace.embed.stream import decode_ahead
from onepeace.errors import UserError
from onepeace.files.source import read_bytes
from onepeace.processors import PROCESSORS

FEWEST_PAIRS = 20
"""Below this, what is held out says nothing and what is learned is learned by heart."""
FEWEST_OF_A_CLASS = 5
HELD_OUT = 0.2
MOST_HELD_OUT = 1000
"""Items that are held out at most: more make the figures hardly any sharper."""
FEWEST_TO_CHOOSE = 12
"""Items to choose by below which nothing is chosen, and all that is not held out is learned from."""
AHEAD = 32


@dataclass(frozen=True)
class OwnData:
    """Usable samples by the modalities they have, and what could not be used."""

    groups: dict[tuple[str, ...], list[Record]]
    """By modalities, as ("image", "text"); a class name counts as text."""
    labelled: bool
    """Whether every sample has a label: the model learns to name it."""
    left_out: list[Skipped]

    @property
    def count(self) -> int:
        return sum(map(len, self.groups.values()))

    @property
    def labels(self) -> list[str]:
        """Sorted; empty if not all samples have one."""
        if not self.labelled:
            return []
        return sorted({record.label for records in self.groups.values() for record in records})

    def described(self) -> str:
        """What was found, in words."""
        kinds = [f"{len(records)} of {' and '.join(keys)}" for keys, records in self.groups.items()]
        classes = f" in {len(self.labels)} classes" if self.labelled else ""
        return f"{', '.join(kinds)}{classes}"


def read_own_data(path: Path, modalities: Sequence[str]) -> OwnData:
    """Read a table (.csv, .tsv, .jsonl: columns image, audio, text, label), or a folder: pictures and sounds with
    captions in .txt files beside them, or one folder for each class.

    Every file is decoded once; what fails is left out and named with its file and line.

    Args:
        modalities: those of the model.

    Raises:
        UserError: nothing is there, or too little to learn from: says what, and how much is needed.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    records: Iterable[Record | Skipped]
    if path.is_dir():
        records = from_folder(path, labels_from_folders=_has_class_folders(path))
    else:
        records = from_table(path, {})
    grouped: dict[tuple[str, ...], list[Record]] = {}
    left_out: list[Skipped] = []
    for _, record, reason in decode_ahead(records, _check, ahead=AHEAD):
        if isinstance(record, Skipped):
            left_out.append(record)
            continue
        if reason is not None:
            left_out.append(reason)
            continue
        words = ["text"] if record.captions or record.label else []
        keys = (*[key for key in media() if key in record.inputs], *words)
        if unknown := [key for key in keys if key not in modalities]:
            left_out.append(Skipped(record.name, f"the model has no {unknown[0]}"))
            continue
        if len(keys) < 2:
            left_out.append(Skipped(record.name, f"has {keys[0]} alone: no caption, no label, no partner"))
            continue
        grouped.setdefault(keys, []).append(record)
    data = _own_data({keys: _grouped(records) for keys, records in grouped.items()}, left_out)
    _refuse_too_little(path, data)
    data = _without_small_groups(data)
    _refuse_too_little(path, data)
    return data


def _own_data(groups: dict[tuple[str, ...], list[Record]], left_out: list[Skipped]) -> OwnData:
    labelled = all(record.label is not None for records in groups.values() for record in records)
    return OwnData(groups, labelled and bool(groups), left_out)


def _without_small_groups(data: OwnData) -> OwnData:
    """Groups of which nothing would be left to learn from, as a single sound among pictures, are left out."""
    groups, left_out = dict(data.groups), list(data.left_out)
    for keys, parts in parts_of(data).items():
        if not parts["train"]:
            records = groups.pop(keys)
            reason = f"{len(records)} of {' and '.join(keys)} are too few to learn from"
            left_out += [Skipped(record.name, reason) for record in records]
    return _own_data(groups, left_out)


def _grouped(records: Sequence[Record]) -> list[Record]:
    """Rows of the same files as one sample with all their captions, as tables of captions have them."""
    merged: dict[Any, Record] = {}
    for record in records:
        key = (*map(str, _media_of(record)), json.dumps(record.targets, sort_keys=True))
        if key in merged:
            merged[key].inputs["text"] = [*merged[key].captions, *record.captions]
        else:
            merged[key] = record
    return list(merged.values())


def _has_class_folders(folder: Path) -> bool:
    """Whether files lie in folders that name their class: then no picture or sound has a .txt beside it."""
    endings = {suffix for key in media() for suffix in PROCESSORS[key].suffixes}
    paths = list(folder.rglob("*"))
    stems = {path.with_suffix("") for path in paths if path.suffix.lower() in endings}
    return not any(path.suffix.lower() == ".txt" and path.with_suffix("") in stems for path in paths)


def _check(record: Record | Skipped) -> Skipped | None:
    """Why the files of a record cannot be used; None if they can, or if it is left out already."""
    if isinstance(record, Skipped):
        return None
    try:
        for key in media():
            if key in record.inputs:
                PROCESSORS[key]().decode(record.inputs[key])
    except (OSError, UserError) as error:
        return skipped(record.name, error)
    return None


def _refuse_too_little(path: Path, data: OwnData) -> None:
    first = (
        f"; the first that cannot be used: {data.left_out[0].where}: {data.left_out[0].reason}" if data.left_out else ""
    )
    if not data.count:
        raise UserError(f"{path}: no usable pair of a picture or sound with a caption or a label{first}")
    if data.count < FEWEST_PAIRS:
        raise UserError(
            f"{path}: {data.count} usable items are too few to learn from; {FEWEST_PAIRS} are needed{first}"
        )
    if not data.labelled:
        return
    counts = Counter(record.label for records in data.groups.values() for record in records)
    if len(counts) < 2:
        raise UserError(f"{path}: all {data.count} items have the label {next(iter(counts))!r}; two classes are needed")
    rare = [label for label, count in counts.items() if count < FEWEST_OF_A_CLASS]
    if rare:
        number = counts[rare[0]]
        raise UserError(
            f"{path}: class {rare[0]!r} has {number} usable items, and {FEWEST_OF_A_CLASS} are needed to learn it and "
            f"to measure it; add some, or leave the class out{first}"
        )


def split(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The training part and the part that is held out, always the same: by a hash of the file's name.

    What one file belongs to stays together. Of each class about the same share is held out.
    """
    groups: dict[Any, dict[str, list[Record]]] = {}
    for record in records:
        file = next(str(record.inputs[key]) for key in media() if key in record.inputs)
        groups.setdefault(record.label, {}).setdefault(file, []).append(record)
    share = min(HELD_OUT, MOST_HELD_OUT / max(1, len(records)))
    train: list[Record] = []
    held_out: list[Record] = []
    for files in groups.values():
        order = sorted(files, key=lambda file: hashlib.sha256(Path(file).name.encode()).digest())
        count = max(1, round(share * len(order)))
        for i, file in enumerate(order):
            (held_out if i < count else train).extend(files[file])
    return train, held_out


def parts_of(data: OwnData) -> dict[tuple[str, ...], dict[str, list[Record]]]:
    """Of each group "train", "val", the part that is held out, and "choose", a fifth of the rest: what the model is
    chosen by (average.py), empty where these would be fewer than `FEWEST_TO_CHOOSE`."""
    found = {}
    for keys, records in data.groups.items():
        rest, held_out = split(records)
        train, choose = split(rest)
        found[keys] = {"val": held_out, "train": train, "choose": choose}
    if sum(len(parts["choose"]) for parts in found.values()) < FEWEST_TO_CHOOSE:
        for parts in found.values():
            parts["train"] += parts.pop("choose")
    return found


def counts_of(data: OwnData) -> dict[str, int]:
    """Samples by "train/image+text" and so on."""
    groups = parts_of(data).items()
    return {f"{part}/{'+'.join(keys)}": len(chosen) for keys, parts in groups for part, chosen in parts.items()}


def write_shards(data: OwnData, folder: Path) -> None:
    """Write the parts of every group below ``folder``: train/image+text-00000.tar, val/image+text-00000.tar, ...

    Files are copied as they are. A process that is killed leaves nothing that counts: shards appear when whole, and
    parts.json, which says how many samples there are by part and pair, comes last.
    """
    for keys, parts in parts_of(data).items():
        for part, chosen in parts.items():
            name = "+".join(keys)
            with ShardWriter(folder / part, name, max_bytes=100_000_000) as writer:
                for number, record in enumerate(chosen):
                    files = {p.suffix.lower().removeprefix("."): read_bytes(p) for p in _media_of(record)}
                    about = {"source": record.source}
                    captions = record.captions or ([record.label] if record.label else [])
                    writer.write(f"{name}_{number:08d}", files, captions, targets=record.targets, about=about)


def _media_of(record: Record) -> list[Path]:
    return [record.inputs[key] for key in media() if key in record.inputs]
