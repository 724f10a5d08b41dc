"""`onepeace shards`: webdataset shards for training, from a public dataset, or your table, data set or folder."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.commands import files, options
from onepeace.commands.options import positive
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import write_text_atomic

if TYPE_CHECKING:
    from onepeace.data.shard_writer import ShardWriter
    from onepeace.datasets.layout import Encoded, Record, Skipped

EXAMPLES = """\
SOURCE is one of
  a .csv, .tsv or .jsonl   with some of the columns image, audio, text (or caption, captions) and label; paths are
                           relative to its folder; in a .jsonl a caption may be a list of captions
  a .parquet or a folder   the same columns; a picture or sound is a path, bytes, or {bytes, path} as datasets (Hugging
  of datasets              Face) stores it, and the folder is one of .parquet files, or what save_to_disk wrote (extra
                           `parquet`)
  a folder                 a.jpg, a.wav or both, with a.txt beside it, one caption per line; if no file has a .txt, the
                           name of its folder is its label
  a public dataset         with --layout NAME; -o is the folder for train/ and val/. Older shards are overwritten

  onepeace shards captions.csv -o shards/pairs
  onepeace shards pictures_by_class -o shards/animals
  onepeace shards downloads/common_voice --split train --column text=sentence -o shards/voice
  onepeace shards --layout coco --help
  onepeace shards --layout coco ~/downloads/coco -o $ONEPEACE_DATA size=160

exit code: 0, 1 when a row or file of yours was skipped (they are listed at the end), 2 for wrong usage"""

MEGABYTE = 1_000_000
SHARD_MEGABYTES, LAYOUT_SHARD_MEGABYTES = 100, 15
PREFIX_LENGTH = 60
AHEAD = 32
"""Number of files read, or checked, ahead of the one being written."""
LISTED = 10
"""Maximum number of skipped files of a public dataset that are listed; thousands may be gone from the web."""


class _Layout(argparse.Action):
    """Stores the name of a layout; a following --help describes that layout."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        from onepeace.datasets import LAYOUTS

        if values not in LAYOUTS:
            raise UsageError(f"no layout {values!r}; there are {', '.join(LAYOUTS)}")
        namespace.layout = values
        parser.epilog = LAYOUTS[values].help()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="table, data set or folder")
    parser.add_argument("overrides", nargs="*", default=[], metavar="option=value", help="options of the layout")
    parser.set_defaults(kept="nothing was written; older shards are unchanged")
    text = "writes FOLDER/PREFIX-00000.tar, ...; see below"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER/PREFIX", help=text)
    parser.add_argument("--force", action="store_true", help="overwrite older shards of the same name")
    options.add_table(parser)
    text = "SOURCE is a downloaded public dataset (see data/README.md); --import FILE.py, before it, adds layouts"
    parser.add_argument("--layout", action=_Layout, metavar="NAME", help=text)
    text = f"megabytes of media per shard ({SHARD_MEGABYTES}; with --layout {LAYOUT_SHARD_MEGABYTES})"
    parser.add_argument("--shard-size", type=positive, metavar="MB", help=text)


def run(args: argparse.Namespace) -> int:
    """Write the shards; skipped entries are listed on stderr."""
    if not args.source.exists():
        raise UsageError(f"{args.source}: no such file or folder")
    if args.overrides and args.layout is None:
        raise UsageError(f"{args.overrides[0]}: one SOURCE at a time; option=value needs --layout NAME")
    if args.layout is not None and (args.column or args.split):
        raise UsageError("--column and --split are for tables and data sets of yours; leave them out with --layout")
    return _write_own(args) if args.layout is None else _write_layout(args)


def _write_layout(args: argparse.Namespace) -> int:
    from onepeace.data.shard_writer import new_shards
    from onepeace.datasets import LAYOUTS
    from onepeace.datasets.pictures import DuplicateFilter
    from onepeace.datasets.written import held_out

    if not args.source.is_dir():
        raise UsageError(f"{args.source}: not a folder; give the folder of the download")
    layout = LAYOUTS[args.layout].with_options(args.overrides, f"layout {args.layout}")
    max_bytes = (args.shard_size or LAYOUT_SHARD_MEGABYTES) * MEGABYTE
    seen = DuplicateFilter()  # shared by all splits, so that validation data is not also written as training data
    written = 0
    for split in layout.splits(args.source, partial(held_out, args.output)):
        folder, prefix = (args.output / split.shards).parent, Path(split.shards).name
        with new_shards(folder, prefix, max_bytes=max_bytes) as writer:
            left_out = _write(writer, split.records, split.encode, seen)
        if split.classes is not None:
            classes = json.dumps(split.classes, indent=1, ensure_ascii=False)
            write_text_atomic(folder / "classes.json", f"{classes}\n")
        _list(left_out, writer.count, LISTED)
        written += writer.count
        if writer.count:
            print(writer)
        else:
            files.say(f"{folder / prefix}: nothing to write; skipped")
    if not written:
        raise UserError(f"{args.source}: nothing in it can be used; nothing was written")
    return 0


def _write_own(args: argparse.Namespace) -> int:
    from onepeace.data.shard_writer import new_shards, older_shards
    from onepeace.datasets.pairs import from_source

    folder, prefix = args.output.parent, args.output.name
    if args.output.is_dir():
        raise UsageError(f"{args.output}: is a folder; add the shards' prefix: {args.output / 'pairs'}")
    if not re.fullmatch(r"\w[\w.-]*", prefix) or len(prefix.encode()) > PREFIX_LENGTH:
        raise UsageError(f"prefix {prefix!r} must be letters, digits, '_', '-' and '.', at most {PREFIX_LENGTH} bytes")
    records = from_source(args.source, dict(args.column), args.split)
    if not args.force and (older := older_shards(folder, prefix)):
        raise UsageError(f"{older[0]} already exists; choose another name, or overwrite it with --force")
    with new_shards(folder, prefix, max_bytes=(args.shard_size or SHARD_MEGABYTES) * MEGABYTE) as writer:
        left_out = _write(writer, records, _read_files)
    _list(left_out, writer.count)
    if not writer.count:
        raise UserError(f"{args.source}: nothing in it can be used; nothing was written")
    print(writer)
    return 1 if left_out else 0


def _read_files(record: "Record") -> "Encoded":
    """Read the files of a record unchanged."""
    from onepeace.datasets.layout import Encoded
    from onepeace.files.source import read_bytes

    found = {}
    for modality, path in record.inputs.items():
        if modality == "text":
            continue
        content = read_bytes(path)
        if not content:
            raise UserError(f"{path}: the file is empty (0 bytes)")
        found[path.suffix.lower().removeprefix(".")] = content
    return Encoded(found)


def _write(
    writer: "ShardWriter",
    records: "Iterable[Record | Skipped]",
    encode: "Callable[[Record], Encoded]",
    seen: "Callable[[bytes], bool] | None" = None,
) -> "list[Skipped]":
    """Write the usable records, and return the skipped ones with the reason.

    Args:
        seen: returns True for content that has been written before, which is dropped silently.
    """
    from onepeace.datasets.layout import Skipped, skipped
    from onepeace.embed.stream import decode_ahead
    from onepeace.progress import Progress

    def read(record: "Record | Skipped") -> "Encoded | Skipped":
        return record if isinstance(record, Skipped) else encode(record)

    family = re.sub(r"[^\w-]", "_", writer.prefix)
    left_out: list[Skipped] = []
    with Progress(None, "sample") as progress:
        for _, record, result in decode_ahead(records, read, ahead=AHEAD):
            progress.update()
            if isinstance(result, Skipped) or isinstance(record, Skipped):
                left_out.append(result)  # type: ignore[arg-type]
            elif isinstance(result, Exception):
                left_out.append(skipped(record.name, result))
            elif seen is None or result.original is None or not seen(result.original):
                key, about = record.key or f"{family}_{writer.count:08d}", {"source": record.source, **record.about}
                # A target that is a file (mask.png) is among the files.
                targets = {name: value for name, value in record.targets.items() if f"{name}.png" not in result.files}
                if not writer.write(key, result.files, record.captions, targets=targets, about=about):
                    left_out.append(Skipped(key, "an earlier sample has this key"))
    return left_out


def _list(left_out: "list[Skipped]", num_written: int, at_most: int | None = None) -> None:
    """List the skipped entries on stderr."""
    if left_out:
        files.say(f"{len(left_out)} skipped, {num_written} written:")
    for where, reason in left_out[:at_most]:
        print(f"  {where}: {reason}", file=sys.stderr)
    if at_most is not None and len(left_out) > at_most:
        print(f"  and {len(left_out) - at_most} more", file=sys.stderr)
