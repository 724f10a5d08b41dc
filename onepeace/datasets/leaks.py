"""Leak check: training and validation shards below one root share nothing, and every sample has what it must have."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onepeace.data.shards import MASK, media_of, raw_samples
from onepeace.datasets import LAYOUTS
from onepeace.datasets.layout import Record
from onepeace.errors import UserError
from onepeace.processors import guessed


def check_leaks(root: Path) -> tuple[dict[str, int], list[str]]:
    """Compare ROOT/train with ROOT/val: the number of samples by set ("val/coco/coco"), and a line for each error.

    An error is: equal bytes of a picture or sound, an equal key, or an equal group in training and validation data; a
    sample without source or license, or with neither caption nor target. A group is what a set is split by: the
    photograph on Flickr, the video of a sound (`Layout.group`).

    Raises:
        UserError: there are no shards, or one is not whole.
    """
    layouts = {layout.family: layout for layout in LAYOUTS.values() if layout.family}
    counts: Counter[str] = Counter()
    errors: list[str] = []
    first: dict[str, dict[Any, str]] = {"train": {}, "val": {}}  # what was seen -> where
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
                marks: list[tuple[str, Any]] = [("key", record.key), ("group", layout and layout.group(record))]
                for files in (files for modality, files in record.inputs.items() if modality != "text"):
                    media = files if isinstance(files, list) else [files]
                    marks += [("media", hashlib.sha1(data, usedforsecurity=False).digest()) for data in media]
                for what, mark in marks:
                    if mark is None:
                        continue
                    if (what, mark) in other:
                        errors.append(f"{where} has the same {what} as {other[what, mark]}")
                    first[split].setdefault((what, mark), where)
    return dict(counts), errors


def held_out(root: Path, name: str) -> Iterator[Record]:
    """The samples in ROOT/val/`name`."""
    for shard in sorted((root / "val" / name).glob("*.tar.gz")):
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
        if not inputs and not texts:
            raise UserError(f"{path}: {key} has no picture, sound or text")
        yield Record(key, str(path), {**inputs, "text": texts}, {"mask": raw[MASK]} if MASK in raw else {}, about)
    if broken:
        raise UserError(broken[0])
