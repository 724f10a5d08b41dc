"""`onepeace calibrate`: unrelated pictures and sounds of a model, which its match compares pictures and sounds with."""

import argparse
from pathlib import Path

from onepeace.commands import files

EXAMPLES = """\
Queries of words have a match with every model: the words and sentences to compare them with come with the package.
Queries that are pictures or sounds have one when calibration.safetensors is in the model's folder. This makes it, from
1,000 pictures and 1,000 sounds of an index that the model made of generic files: as many of each of its folders, tables
and shards. Only vectors are kept, of what is least like the rest.

  onepeace index build generic.index photos recordings --model runs/laptop/model
  onepeace calibrate generic.index"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("index", type=Path, metavar="INDEX", help="of generic files; the file goes to its model")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def run(args: argparse.Namespace) -> int:
    from onepeace.files.atomic import write_atomic
    from onepeace.hub.resolve import resolve
    from onepeace.index import Index
    from onepeace.index.calibrate import FILE, calibrate

    with Index.open(args.index) as index:
        output = resolve(index.model) / FILE
        files.check_output(output, args.force)
        banks = calibrate(index)
    with write_atomic(output) as temporary:
        temporary.write_bytes(banks.to_bytes())
    counts = ", ".join(f"{len(rows)} of {bank}" for bank, rows in banks.vectors.items())
    files.say(f"{counts} in {output}")
    return 0
