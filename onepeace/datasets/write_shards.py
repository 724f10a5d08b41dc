"""Writes shards from samples: those of a public dataset, or of a table, data set or folder of users."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from onepeace.data.sample import MASK, media_of
from onepeace.data.shard import content_of, open_shard
from onepeace.data.write import ShardWriter, new_shards, older_shards
from onepeace.datasets.layout import Encoded, Layout, Record, Skipped, Split, skipped
from onepeace.datasets.media import DuplicateFilter
from onepeace.datasets.pairs import from_source
from onepeace.errors import UsageError, UserError
from onepeace.extensions import HINT
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import read_bytes
from onepeace.processors import PROCESSORS
from onepeace.progress import Progress
from onepeace.threads import decode_ahead

MEGABYTE = 1_000_000
PREFIX_LENGTH = 60
"""Maximum bytes of a name of shards."""
AHEAD = 32
"""Number of files read, or checked, ahead of the one being written."""


class WrittenShards(NamedTuple):
    """Shards written for a set of samples."""

    path: Path
    """Path of the shards without their numbers and endings."""
    num_samples: int
    summary: str
    """The shards, samples and bytes, in one line."""
    skipped: list[Skipped]
    """Entries that cannot be used."""


def write_layout(layout: Layout, source: Path, root: Path, shard_megabytes: int) -> Iterator[WrittenShards]:
    """Write the shards of a downloaded dataset, split by split, and classes.json where it has classes.

    Args:
        source: folder of the download.
        root: folder of train/ and val/; older shards are overwritten.
        shard_megabytes: media in a shard.

    Raises:
        UserError: the folder does not hold the dataset, or nothing in it can be used.
    """
    is_repeated = DuplicateFilter()  # of all splits, so that validation data is not also written as training data
    num_samples = 0
    for split in layout.splits(source, partial(held_out, root)):
        if not isinstance(split, Split):
            raise UserError(f"its layout yields a {type(split).__name__}, not a Split", where=source)
        written = _write_split(split, root, shard_megabytes, is_repeated)
        num_samples += written.num_samples
        yield written
    if not num_samples:
        raise UserError("nothing in it can be used; nothing was written", where=source)


def _write_split(split: Split, root: Path, shard_megabytes: int, is_repeated: Callable[[bytes], bool]) -> WrittenShards:
    path = root / split.shards
    with new_shards(path.parent, path.name, max_bytes=shard_megabytes * MEGABYTE) as writer:
        skipped_entries = _write(writer, split.records, split.encode, is_repeated)
    if split.classes is not None:
        classes = json.dumps(split.classes, indent=1, ensure_ascii=False)
        write_text_atomic(path.parent / "classes.json", f"{classes}\n")
    return WrittenShards(path, writer.count, str(writer), skipped_entries)


def write_own(
    source: Path,
    output: Path,
    shard_megabytes: int,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    force: bool = False,
) -> WrittenShards:
    """Write the shards of a table, data set or folder; files are stored as they are.

    Args:
        source: see `onepeace.datasets.pairs.from_source`, also for ``columns`` and ``split``.
        output: path of the shards without their numbers.
        shard_megabytes: media in a shard.
        force: overwrite older shards of the same name.

    Raises:
        UsageError: the name does not suit, or older shards have it; UserError: nothing can be used.
    """
    folder = output.parent
    prefix = output.name
    if output.is_dir():
        raise UsageError(f"is a folder; add the shards' prefix: {output / 'pairs'}", where=output)
    if not re.fullmatch(r"\w[\w.-]*", prefix) or len(prefix.encode()) > PREFIX_LENGTH:
        raise UsageError(f"prefix {prefix!r} must be letters, digits, '_', '-' and '.', at most {PREFIX_LENGTH} bytes")
    records = from_source(source, columns, split)
    older = older_shards(folder, prefix)
    if older and not force:
        raise UsageError(f"{older[0]} already exists; choose another name, or overwrite it with --force")
    with new_shards(folder, prefix, max_bytes=shard_megabytes * MEGABYTE) as writer:
        skipped_entries = _write(writer, records, _read_files)
    return WrittenShards(output, writer.count, str(writer), skipped_entries)


def _read_files(record: Record) -> Encoded:
    """Read the files of a record unchanged."""
    content_by_ending = {}
    for modality, path in record.inputs.items():
        if modality == "text":
            continue
        content = read_bytes(path)
        if not content:
            raise UserError("the file is empty (0 bytes)", where=path)
        ending = path.suffix.lower().removeprefix(".")
        content_by_ending[ending] = content
    return Encoded(content_by_ending)


def _write(
    writer: ShardWriter,
    records: Iterable[Record | Skipped],
    encode: Callable[[Record], Encoded],
    is_repeated: Callable[[bytes], bool] | None = None,
) -> list[Skipped]:
    """Write the usable records; returns the entries that cannot be used.

    Args:
        is_repeated: True for content that has been written before, which is dropped silently.

    Raises:
        UserError: a record is none, or has an input of a modality that is not known.
    """

    def read(record: Record | Skipped) -> Encoded | Skipped:
        return record if isinstance(record, Skipped) else encode(record)

    skipped_entries: list[Skipped] = []
    with Progress(None, "sample") as progress:
        for _, record, result in decode_ahead(records, read, ahead=AHEAD):
            progress.update()
            if isinstance(record, Skipped):
                skipped_entries.append(record)
                continue
            _check(record)
            if isinstance(result, Exception):
                skipped_entries.append(skipped(record.name, result))
            elif isinstance(result, Encoded):
                original = result.original
                if is_repeated is not None and original is not None and is_repeated(original):
                    continue
                key = _write_sample(writer, record, result)
                if key is not None:
                    skipped_entries.append(Skipped(key, "an earlier sample has this key"))
    return skipped_entries


def _check(record: Record) -> None:
    """`UserError` for what would be written without a part, or not at all, by a mistake in a layout."""
    if not isinstance(record, Record):
        raise UserError(f"its layout's records have a {type(record).__name__}, not a Record")
    for modality in record.inputs:
        if modality not in PROCESSORS:
            known = ", ".join(PROCESSORS)
            raise UserError(f"its inputs have {modality!r}; known: {known}; {HINT}", where=record.name)


def _write_sample(writer: ShardWriter, record: Record, encoded: Encoded) -> str | None:
    """Write a sample; returns its key if an earlier sample has it."""
    family = re.sub(r"[^\w-]", "_", writer.prefix)
    key = record.key or f"{family}_{writer.count:08d}"
    targets = {}
    for name, value in record.targets.items():
        if f"{name}.png" not in encoded.files:  # a target that is a file (mask.png) is among the files
            targets[name] = value
    facts = {"source": record.source, **record.about}
    is_new = writer.write(key, encoded.files, record.captions, targets=targets, about=facts)
    return None if is_new else key


def held_out(root: Path, name: str) -> Iterator[Record]:
    """The samples in ROOT/val/`name`."""
    for shard in sorted((root / "val" / name).glob("*.tar*")):
        yield from read_shard(shard)


def read_shard(path: Path) -> Iterator[Record]:
    """The samples of a shard in order: media as bytes, only the caption in KEY.txt, only the target mask, and all
    fields of KEY.json in `about`.

    Raises:
        UserError: a sample has no .json that can be read (names the shard and the key).
    """
    shard = open_shard(str(path.absolute()))
    for row, key in enumerate(shard.keys):
        members = content_of(shard.members(row))
        inputs: dict[str, Any] = {"text": [members["txt"].decode()] if "txt" in members else []}
        for modality, processor in PROCESSORS.items():
            if modality != "text" and (media := media_of(members, {ending[1:] for ending in processor.suffixes})):
                inputs[modality] = media
        try:
            about = json.loads(members.get("json", b""))
        except ValueError as error:
            raise UserError(f"{key} has no .json that can be read ({error})", where=path) from error
        targets = {"mask": members[MASK]} if MASK in members else {}
        yield Record(key, str(path), inputs, targets, about)
