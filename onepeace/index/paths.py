"""Paths of items: a file's own, "SHARD::KEY.ENDING" of a sample in a shard, "TABLE::LINE" of a row in a table."""

import os
import re
from pathlib import Path

SHARDS = (".tar", ".tar.gz", ".tgz")
TABLES = (".csv", ".tsv", ".jsonl")
SEPARATOR = "::"
_ENDINGS = "|".join(map(re.escape, (*SHARDS, *TABLES)))
_CONTAINER = re.compile(rf"(.+?(?:{_ENDINGS})){SEPARATOR}", re.IGNORECASE | re.DOTALL)
_SURROGATES = re.compile("[\ud800-\udfff]")


def is_shard(path: str) -> bool:
    return path.lower().endswith(SHARDS)


def is_table(path: str) -> bool:
    return path.lower().endswith(TABLES)


def places_of(path: str) -> set[str]:
    """An item's path, the folders above it, and the shard or table it is part of."""
    return {path, whole_of(path) or path, *map(str, Path(path).parents)}


def whole_of(path: str) -> str | None:
    """Path of the shard or table that an item is a sample or row of; None for a file."""
    match = _CONTAINER.match(path)
    return match[1] if match else None


def shard_of(path: str) -> str | None:
    """Path of the shard that an item is a sample of, else None."""
    whole = whole_of(path)
    return whole if whole and is_shard(whole) else None


def name_and_place(path: str) -> tuple[str, str]:
    """Name of an item, and the folder or shard it is in."""
    shard = shard_of(path)
    if shard:
        return path[len(shard) + len(SEPARATOR) :], shard
    return os.path.basename(path), os.path.dirname(path)


def without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON and file names may contain, but UTF-8 cannot encode."""
    return _SURROGATES.sub("\ufffd", text)
