"""`onepeace plot RUN... [-o FILE]`: the losses and scores of one or several runs, one panel each."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a training run, or its log.jsonl")
    parser.add_argument(
        "-o", "--output", default="losses.png", metavar="FILE",
        help="picture to write, as its ending says: .png, .pdf, .svg ... (losses.png)",
    )  # fmt: skip
    parser.add_argument("--from-step", type=int, default=0, metavar="N", help="leave out the steps before N")


def run(args: argparse.Namespace) -> int:
    """Read the logs, draw, say what was written."""
    from onepeace.train.curves import draw, labels, read_curves

    curves = {label: read_curves(path, args.from_step) for label, path in labels(args.runs).items()}
    draw(curves, Path(args.output))
    names = {name for run in curves.values() for name in run}
    print(f"{args.output}: {len(names)} curves of {len(curves)} runs")
    return 0
