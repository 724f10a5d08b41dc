"""What training and validation shards below one root must not share, and what every sample in them must have."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.data.shards import MASK, media_of, raw_samples
from onepeace.datasets import LAYOUTS
from onepeace.datasets.layout import Record
from onepeace.datasets.pictures import difference_hash, open_picture
from onepeace.errors import UserError
from onepeace.processors import guessed


class LeakReport(NamedTuple):
    """What `check_leaks` found."""

    counts: dict[str, int]
    """Samples by set: "val/coco/coco"."""
    errors: list[str]
    """One line each."""
    alike: tuple[int, int] | None
    """How many validation photographs look like a training one, of how many."""


def check_leaks(root: Path, near: int | None = None) -> LeakReport:
    """Compare ROOT/train with ROOT/val.

    An error is: equal bytes of a picture or sound, an equal key, or an equal group in training and validation data; a
    sample without media, without source or license, or with neither caption nor target; a caption in KEY.txt that is
    not one of KEY.json. A group is what a set is split by: the emoji's name, the photograph on Flickr, the video of a
    sound (`Layout.group`).

    Args:
        near: also count validation photographs whose difference hash is within so many of 64 bits of a training one.

    Raises:
        UserError: there are no shards, or one is not whole.
    """
    layouts = {layout.family: layout for layout in LAYOUTS.values() if layout.family}
    counts: Counter[str] = Counter()
    errors: list[str] = []
    first: dict[str, dict[Any, str]] = {"train": {}, "val": {}}  # what was seen -> where
    hashes: dict[str, list[int]] = {"train": [], "val": []}
    for split in first:
        shards = sorted((root / split).rglob("*.tar.gz"))
        if not shards:
            raise UserError(f"{root / split}: no shards (*.tar.gz)")
        other = first["train"] if split == "val" else {}
        for shard in shards:
            name = f"{shard.parent.relative_to(root)}/{shard.name.rpartition('-')[0]}"
            for record in read_shard(shard):
                where = f"{shard.relative_to(root)}: {record.key}"
                layout = layouts.get(record.key.partition("_")[0])
                counts[name] += 1
                if not record.about.get("license") or not record.about.get("source"):
                    errors.append(f"{where} has no license and source")
                if not (record.captions or record.about.get("label") or record.targets or record.about.get("targets")):
                    errors.append(f"{where} has no caption and no target")
                if not {*record.captions} <= {*record.about.get("captions", [])}:
                    errors.append(f"{where}: its .txt is not one of its captions")
                marks: list[tuple[str, Any]] = [("key", record.key), ("group", layout and layout.group(record))]
                media = [data for modality in record.inputs if modality != "text" for data in _each(record, modality)]
                marks += [("media", hashlib.sha1(data, usedforsecurity=False).digest()) for data in media]
                for what, mark in marks:
                    if mark is None:
                        continue
                    if (what, mark) in other:
                        errors.append(f"{where} has the same {what} as {other[what, mark]}")
                    first[split].setdefault((what, mark), where)
                if near is not None and layout and layout.photographs:
                    hashes[split] += [difference_hash(open_picture(data)) for data in _each(record, "image")]
    return LeakReport(dict(counts), errors, None if near is None else (_near(hashes, near), len(hashes["val"])))


def held_out(root: Path, name: str, needed: bool = False) -> Iterator[Record]:
    """The samples in ROOT/val/`name`; UserError if they are needed and there are none."""
    shards = sorted((root / "val" / name).glob("*.tar.gz"))
    if needed and not shards:
        raise UserError(f"{root / 'val' / name}: no shards to compare with; make those of {name} first")
    for shard in shards:
        yield from read_shard(shard)


def read_shard(path: Path) -> Iterator[Record]:
    """The samples of a shard in order: media as bytes, of the captions that of KEY.txt alone, of the targets the mask
    alone, all fields of KEY.json in `about`.

    Raises:
        UserError: a sample that is not whole (names the shard and the key).
    """
    known = {key: {suffix[1:] for suffix in cls.suffixes} for key, cls in guessed().items() if key != "text"}
    endings = {"video": {"mp4"}, **known}
    broken: list[str] = []
    for raw in raw_samples(str(path.absolute()), broken):
        key = raw["__key__"]
        try:
            inputs = {modality: media for modality in endings if (media := media_of(raw, endings[modality]))}
            texts, about = [raw[member].decode() for member in ("txt",) if member in raw], json.loads(raw["json"])
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: {key} has a file that cannot be read, or no .json ({error!r})") from error
        if not inputs:
            raise UserError(f"{path}: {key} has no picture or sound")
        yield Record(key, str(path), {**inputs, "text": texts}, {"mask": raw[MASK]} if MASK in raw else {}, about)
    if broken:
        raise UserError(broken[0])


def _each(record: Record, modality: str) -> list[bytes]:
    """The files of a modality, of which a sample may have several."""
    files = record.inputs[modality]
    return files if isinstance(files, list) else [files]


def _near(hashes: dict[str, list[int]], bits: int) -> int:
    import numpy as np

    train, val = (np.array(hashes[split], dtype=np.uint64) for split in ("train", "val"))
    differences = (np.unpackbits((train ^ one).view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1) for one in val)
    return sum(bool((difference <= bits).any()) for difference in differences)
