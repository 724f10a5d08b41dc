"""`onepeace calibrate`: the unrelated image and audio queries of a model, on which its match is based."""

import argparse
from pathlib import Path

from onepeace.commands import files

EXAMPLES = """\
Text queries have a match with every model: the unrelated words and sentences for it come with the package. Queries by
picture or sound have a match if calibration.safetensors is in the model's folder. This command creates it from 1,000
pictures and 1,000 sounds drawn at random from an index of generic files that was built with that model. It stores
vectors only, those least similar to the rest.

  onepeace index build generic.index photos recordings --model runs/laptop/model
  onepeace calibrate generic.index"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("index", type=Path, metavar="INDEX", help="index of generic files, built with the model")
    parser.add_argument("--force", action="store_true", help="overwrite the calibration if it exists")


def run(args: argparse.Namespace) -> int:
    from onepeace.files.atomic import write_atomic
    from onepeace.hub.resolve import resolve
    from onepeace.index import Index
    from onepeace.index.calibrate import CALIBRATION, calibrate

    with Index.open(args.index) as index:
        output = resolve(index.model) / CALIBRATION
        files.check_output(output, args.force)
        banks = calibrate(index)
    with write_atomic(output) as temporary:
        temporary.write_bytes(banks.to_bytes())
    counts = ", ".join(f"{len(rows)} of {bank}" for bank, rows in banks.vectors.items())
    files.say(f"{counts} written to {output}")
    return 0
