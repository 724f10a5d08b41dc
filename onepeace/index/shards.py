"""Samples of a webdataset shard as entries of an index."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from onepeace.errors import reason_at
from onepeace.files.source import NamedBytes
from onepeace.index.entries import Entry, described, entry_of_file, modalities_by_suffix
from onepeace.index.items import Item


def read_shard(shard: str) -> Iterator[Entry]:
    """Entries of a webdataset shard, "SHARD::KEY.ENDING": pictures, sounds, videos, and the text of samples that have
    nothing else. Samples that cannot be read are reported as the problem of an entry for the shard."""
    from onepeace.data.sample import BrokenSample, parse_sample
    from onepeace.data.shard import UnreadableShard, open_shard

    shard_item = entry_of_file(shard, "text").item
    try:
        opened = open_shard(shard)
    except UnreadableShard as error:
        yield _problem_of(shard_item, [reason_at(shard_item.path, error)])
        return
    problems: list[str] = []
    for row in range(len(opened)):
        key = opened.key(row)
        members = opened.members(row)
        captions: list[str] = []
        columns: dict[str, Any] = {}
        try:
            sample = parse_sample(key, members, opened.name, ())
            captions = sample.captions
            columns = {**sample.targets}
            columns.pop("mask", None)  # a picture, which has an entry of its own
        except (BrokenSample, UnreadableShard) as error:
            problems.append(reason_at(shard_item.path, error))
        yield from _entries_of_sample(replace(shard_item, path=f"{shard}::{key}"), members, captions, columns)
    if problems:
        yield _problem_of(shard_item, problems)


def _entries_of_sample(
    sample_item: Item,
    members: Mapping[str, Any],
    captions: Sequence[str],
    columns: Mapping[str, Any],
) -> Iterator[Entry]:
    """Entries of a sample with the path "SHARD::KEY".

    Args:
        members: place of each file of the sample, by its ending.
        captions: its texts.
        columns: its other fields.
    """
    modalities = modalities_by_suffix()
    has_media = False
    for ending, extent in members.items():
        modality = modalities.get(f".{ending.rpartition('.')[2]}", "text")
        if modality == "text":
            continue
        has_media = True
        path = f"{sample_item.path}.{ending}"
        item = replace(sample_item, path=path, modality=modality, size=extent.size)
        yield described(item, partial(_content, extent, path), captions, columns)
    if not has_media and captions:
        yield described(replace(sample_item, path=f"{sample_item.path}.txt"), captions[0], captions, columns)


def _problem_of(shard_item: Item, problems: Sequence[str]) -> Entry:
    """Entry of a shard with what cannot be read in it."""
    first, *further = dict.fromkeys(line.removeprefix(f"{shard_item.path}: ") for line in problems)
    if further:
        first = f"{first}; and {len(further)} more"
    return Entry(replace(shard_item, problem=first))


def _content(extent: Any, path: str) -> NamedBytes:
    from onepeace.data.shard import content_of

    return NamedBytes(content_of(extent), path)
