"""`onepeace shards`: webdataset shards for training, from a public dataset, or your table, data set or folder."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.commands import files, options
from onepeace.commands.options import positive
from onepeace.errors import UsageError, UserError, printable

if TYPE_CHECKING:
    from onepeace.datasets.write_shards import WrittenShards

EXAMPLES = """\
SOURCE is one of
  a .csv, .tsv or .jsonl   with some of the columns image, audio, text (or caption, captions) and label; paths are
                           relative to its folder; in a .jsonl a caption may be a list of captions
  a .parquet or a folder   the same columns; a picture or sound is a path, bytes, or {bytes, path} as datasets (Hugging
  of .parquet files        Face) stores it (extra `parquet`)
  a folder                 a.jpg, a.wav or both, with a.txt beside it, one caption per line; if no file has a .txt, the
                           name of its folder is its label
  a public dataset         with --layout FILE.py; -o is the folder for train/ and val/. Older shards are overwritten

  onepeace shards captions.csv -o shards/pairs
  onepeace shards pictures_by_class -o shards/animals
  onepeace shards downloads/common_voice --split train --column text=sentence -o shards/voice
  onepeace shards --layout recipes/layouts/coco.py --help
  onepeace shards --layout recipes/layouts/coco.py ~/downloads/coco -o $ONEPEACE_DATA size=160

exit code: 0, 1 when a row or file was skipped (they are listed at the end; with --layout it stays 0, as public
datasets lose files), 2 for wrong usage"""

SHARD_MEGABYTES = 100
LAYOUT_SHARD_MEGABYTES = 15
LISTED = 10
"""Maximum number of skipped files of a public dataset that are listed; thousands may be gone from the web."""


class _Layout(argparse.Action):
    """Stores a layout; a following --help describes it."""

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        from onepeace.datasets.layout import load_layout

        namespace.layout = load_layout(values)
        namespace.layout_file = values
        parser.epilog = namespace.layout.help()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="table, data set or folder")
    parser.add_argument("overrides", nargs="*", default=[], metavar="option=value", help="options of the layout")
    parser.set_defaults(kept="nothing was written; older shards are unchanged")
    text = "writes FOLDER/PREFIX-00000.tar, ...; see below"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER/PREFIX", help=text)
    parser.add_argument("--force", action="store_true", help="overwrite older shards of the same name")
    options.add_table(parser)
    text = "SOURCE is a downloaded public dataset, which this Python file reads (see data/README.md)"
    parser.add_argument("--layout", action=_Layout, metavar="FILE.py", help=text)
    text = f"megabytes of media per shard ({SHARD_MEGABYTES}; with --layout {LAYOUT_SHARD_MEGABYTES})"
    parser.add_argument("--shard-size", type=positive, metavar="MB", help=text)


def run(args: argparse.Namespace) -> int:
    """Write the shards; entries that cannot be used are listed on stderr."""
    if not args.source.exists():
        raise UsageError("no such file or folder", where=args.source)
    if args.overrides and args.layout is None:
        raise UsageError("one SOURCE at a time; option=value needs --layout FILE.py", where=args.overrides[0])
    if args.layout is not None and (args.column or args.split):
        raise UsageError("--column and --split are for tables and data sets of yours; leave them out with --layout")
    if args.layout is None:
        return _write_own(args)
    return _write_layout(args)


def _write_layout(args: argparse.Namespace) -> int:
    from onepeace.datasets.write_shards import write_layout

    if not args.source.is_dir():
        raise UsageError("not a folder; give the folder of the download", where=args.source)
    layout = args.layout.with_options(args.overrides, args.layout_file)
    shard_megabytes = args.shard_size or LAYOUT_SHARD_MEGABYTES
    for written in write_layout(layout, args.source, args.output, shard_megabytes):
        _list_skipped(written, LISTED)
        if written.num_samples:
            files.show(written.summary)
        else:
            files.say(f"{written.path}: nothing to write; skipped")
    return 0


def _write_own(args: argparse.Namespace) -> int:
    from onepeace.datasets.write_shards import write_own

    written = write_own(
        args.source,
        args.output,
        args.shard_size or SHARD_MEGABYTES,
        columns=dict(args.column),
        split=args.split,
        force=args.force,
    )
    _list_skipped(written)
    if not written.num_samples:
        raise UserError("nothing in it can be used; nothing was written", where=args.source)
    files.show(written.summary)
    return 1 if written.skipped else 0


def _list_skipped(written: "WrittenShards", at_most: int | None = None) -> None:
    """List the entries that cannot be used on stderr."""
    if not written.skipped:
        return
    files.say(f"{len(written.skipped)} skipped, {written.num_samples} written:")
    for entry in written.skipped[:at_most]:
        print(printable(f"  {entry.where}: {entry.reason}"), file=sys.stderr)
    if at_most is not None and len(written.skipped) > at_most:
        print(f"  and {len(written.skipped) - at_most} more", file=sys.stderr)
