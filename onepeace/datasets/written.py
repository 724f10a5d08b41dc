"""Samples in shards that were written from layouts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onepeace.data.sample import MASK, media_of
from onepeace.data.shard import content_of, open_shard
from onepeace.datasets.layout import Record
from onepeace.errors import UserError
from onepeace.processors import guessed


def held_out(root: Path, name: str) -> Iterator[Record]:
    """The samples in ROOT/val/`name`."""
    for shard in sorted((root / "val" / name).glob("*.tar*")):
        yield from read_shard(shard)


def read_shard(path: Path) -> Iterator[Record]:
    """The samples of a shard in order: media as bytes, only the caption in KEY.txt, only the target mask, and all
    fields of KEY.json in `about`.

    Raises:
        UserError: a sample is incomplete (names the shard and the key).
    """
    endings = _endings()
    shard = open_shard(str(path.absolute()))
    for row in range(len(shard)):
        content = content_of(shard.members(row))
        yield _read_sample(path, shard.key(row), content, endings)


def _endings() -> dict[str, set[str]]:
    """File endings of each modality but text, without the dot."""
    endings = {"video": {"mp4"}}
    for modality, processor in guessed().items():
        if modality != "text":
            endings[modality] = {suffix.removeprefix(".") for suffix in processor.suffixes}
    return endings


def _read_sample(
    path: Path,
    key: str,
    raw: Mapping[str, Any],
    endings: Mapping[str, set[str]],
) -> Record:
    """A sample, from the content of its files by their endings."""
    inputs = {}
    try:
        for modality, endings_of_modality in endings.items():
            media = media_of(raw, endings_of_modality)
            if media:
                inputs[modality] = media
        texts = [raw["txt"].decode()] if "txt" in raw else []
        facts = json.loads(raw["json"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{key} has a file that cannot be read, or no .json ({error!r})", where=path) from error
    if not inputs and not texts:
        raise UserError(f"{key} has no picture, sound or text", where=path)
    return Record(
        key=key,
        source=str(path),
        inputs={**inputs, "text": texts},
        targets={"mask": raw[MASK]} if MASK in raw else {},
        about=facts,
    )
