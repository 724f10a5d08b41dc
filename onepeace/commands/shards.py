"""`onepeace shards`: webdataset shards for training, from a table or a folder of files."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.commands import files
from onepeace.errors import UsageError, UserError

if TYPE_CHECKING:
    from onepeace.datasets.pairs import Pair, Skipped

EXAMPLES = """\
SOURCE is one of
  a .csv, .tsv or .jsonl   paths in it are relative to its folder; a caption of a .jsonl may be a list of captions.
                           Columns that no option names: image, audio, text (or caption, captions), label, where filled
  a folder                 a.jpg, or a.wav, or both, with a.txt beside it, one caption a line

  onepeace shards captions.csv -o shards/pairs
  onepeace shards clips.tsv -o shards/clips --audio file --text sentence --check
  onepeace shards pictures -o shards/animals --labels-from-folders

exit code: 0, 1 when a row or file was left out (listed at the end; the others are written), 2 for wrong usage"""

SHARD_SIZE = "100MB"
PREFIX_LENGTH = 60
AHEAD = 32
"""Files that are read, or checked, ahead of the one that is written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="table or folder")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER/PREFIX", help="writes FOLDER/PREFIX-00000.tar, ..."
    )
    for key in ("image", "audio", "text", "label"):
        parser.add_argument(f"--{key}", metavar="COL", help=f"column of the {key}; then every row must have one")
    parser.add_argument("--labels-from-folders", action="store_true", help="the name of a file's folder is its label")
    parser.add_argument(
        "--shard-size", default=SHARD_SIZE, metavar="N", help=f"samples, or megabytes (50MB); default {SHARD_SIZE}"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N samples")
    parser.add_argument("--check", action="store_true", help="decode every file, leave out what fails")
    parser.add_argument("--force", action="store_true", help="replace older shards of the same name")


def run(args: argparse.Namespace) -> int:
    """Write the shards, list what was left out."""
    folder, prefix = args.output.parent, args.output.name
    if args.output.is_dir():
        raise UsageError(f"{args.output}: is a folder; add the shards' prefix: {args.output / 'pairs'}")
    if not re.fullmatch(r"\w[\w.-]*", prefix) or len(prefix.encode()) > PREFIX_LENGTH:
        raise UsageError(f"prefix {prefix!r} must be letters, digits, '_', '-' and '.', at most {PREFIX_LENGTH} bytes")
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit} is too few; it must be at least 1")
    max_items, max_bytes = _shard_size(args.shard_size)
    pairs = _pairs(args)

    from tqdm import tqdm

    from onepeace.data.shard_writer import ShardWriter
    from onepeace.datasets.pairs import Skipped
    from onepeace.embed.stream import decode_ahead

    writer = ShardWriter(folder, prefix, max_bytes=max_bytes, max_items=max_items)
    if not args.force and (older := writer.older()):
        raise UsageError(f"{older[0]} exists; choose another name, or replace it with --force")
    family = re.sub(r"[^\w-]", "_", prefix)
    skipped: list[Skipped] = []
    with writer:
        content = decode_ahead(pairs, lambda pair: _read(pair, args.check), ahead=AHEAD)
        for _, pair, media in tqdm(content, unit=" rows", disable=None):
            if isinstance(pair, Skipped) or isinstance(media, Skipped):
                skipped.append(media if isinstance(media, Skipped) else pair)
                continue
            key = f"{family}_{writer.count:08d}"
            writer.write(key, media, pair.captions, label=pair.label, source=pair.source)
            if writer.count == args.limit:
                break
        if not writer.count:
            # Inside the block, so that older shards stay.
            _list(skipped, 0)
            raise UserError(f"{args.source}: nothing in it can be used; nothing is written")
    size = sum(path.stat().st_size for path in writer.paths)
    print(f"{folder / prefix}-*.tar: {writer.count} samples, {size} bytes in {len(writer.paths)} shards")
    return _list(skipped, writer.count)


def _pairs(args: argparse.Namespace) -> "Iterator[Pair | Skipped]":
    columns = {key: name for key in ("image", "audio", "text", "label") if (name := getattr(args, key)) is not None}
    if not args.source.exists():
        raise UsageError(f"{args.source}: no such file or folder")

    from onepeace.datasets.pairs import from_folder, from_table

    if not args.source.is_dir():
        if args.labels_from_folders:
            raise UsageError(f"--labels-from-folders is for a folder, and {args.source} is a file")
        return from_table(args.source, columns)
    if columns:
        raise UsageError(f"--{next(iter(columns))} names a column of a table, and {args.source} is a folder")
    return from_folder(args.source, labels_from_folders=args.labels_from_folders)


def _shard_size(text: str) -> tuple[int | None, int | None]:
    """(samples, bytes) of a shard, one of them None."""
    match = re.fullmatch(r"0*([1-9]\d*)\s*(MB)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(f"--shard-size {text} is neither a number of samples (1000) nor of megabytes (50MB)")
    number = int(match[1])
    return (None, number * 1_000_000) if match[2] else (number, None)


def _read(pair: "Pair | Skipped", check: bool) -> "dict[str, bytes] | Skipped":
    """The files' bytes by ending, or what is wrong with one."""
    from onepeace.datasets.pairs import Skipped
    from onepeace.files.source import read_bytes
    from onepeace.processors import PROCESSORS

    if isinstance(pair, Skipped):
        return pair
    media = {}
    try:
        for modality, path in pair.files.items():
            if check:
                PROCESSORS[modality]().decode(path)
            content = read_bytes(path)
            if not content:
                raise UserError(f"{path}: the file is empty (0 bytes)")
            media[path.suffix.lower().removeprefix(".")] = content
    except UserError as error:
        return Skipped(pair.where, str(error).removeprefix(f"{pair.where}: "))
    return media


def _list(skipped: "list[Skipped]", num_written: int) -> int:
    """Lists on stderr what was left out; 1 if there is any, else 0."""
    if skipped:
        files.say(f"{len(skipped)} of {len(skipped) + num_written} left out:")
    for where, reason in skipped:
        print(f"  {where}: {reason}", file=sys.stderr)
    return 1 if skipped else 0
