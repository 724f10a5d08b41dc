"""`onepeace calibrate`: what makes one scale of a model's scores, from texts, pictures and sounds."""

import argparse
import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING

from onepeace.commands import files, number
from onepeace.errors import UsageError, UserError, need
from onepeace.files.table import format_table
from onepeace.files.walk import Unreadable

if TYPE_CHECKING:
    from onepeace.index.calibration import Calibration

EXAMPLES = """\
SOURCE is one or more of
  a .csv, .tsv or .jsonl    of pairs, as `onepeace shards` reads it: image, audio, text (or caption, captions), label
  a pattern of shards       "train/*.tar", with captions or labels; quote it
  a folder                  whose pictures and sounds, and the lines of whose .txt files, are generic queries
Take what the model was not trained on, and what your queries and files are like. Pairs also give match probabilities:
items belong together when their label, or without one their first caption, is the same. A folder gives none.

  onepeace calibrate runs/laptop/model captions.csv
  onepeace calibrate tiny "pictures/*.tar" "sounds/*.tar" -o mine.safetensors --plot reliability.png
  onepeace calibrate tiny photos recordings questions -o mine.safetensors

exit code: 0, 1 when items could not be read (listed at the end; the file is written), 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="tiny, a model folder or a released model")
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="table, shards or folder; see below")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="to write; default: calibration.safetensors in the model's folder",
    )
    parser.add_argument("--force", action="store_true", help="replace the calibration that the model's folder has")
    parser.add_argument(
        "--samples", type=number.positive, default=2000, metavar="N",
        help="samples drawn of each SOURCE, always the same (default: 2000)",
    )  # fmt: skip
    parser.add_argument(
        "--prior", type=number.prior, default=0.01, metavar="P",
        help="share of matches among all items that the probabilities are fitted for (default: 0.01)",
    )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw how reliable the match probabilities are")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--dtype", default="auto", metavar="NAME", help="float32, bfloat16, float16 or auto")
    parser.add_argument(
        "--batch-size", type=number.positive, default=32, metavar="N", help="items in one pass (default: 32)"
    )


def run(args: argparse.Namespace) -> int:
    from onepeace.embed.embedder import load
    from onepeace.evaluate.reliability import draw
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.index.calibration import FILE
    from onepeace.index.fitting import fit
    from onepeace.index.sampling import draw_samples, embed, read

    if args.plot:
        need("matplotlib", "plot")
        files.check_output(args.plot)
    folder = resolve(args.model)
    output = args.output or folder / FILE
    files.check_output(output)
    if args.output is None and output.exists() and not args.force:
        raise UsageError(f"{output}: is there already; give --force to replace it, or -o FILE")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"{output}: cannot be written (no write permission for its folder); give -o FILE")
    problems: list[Unreadable] = []
    samples = [sample for source in args.sources for sample in draw_samples(read(source, problems), args.samples)]
    if not samples:
        raise UserError(f"{', '.join(args.sources)}: nothing in it can be used")

    model = load(args.model, device=args.device, dtype=args.dtype)
    found = embed(model, samples, args.batch_size, problems)
    if not found:
        files.exit_code(problems, 0)
        raise UserError(f"{', '.join(args.sources)}: nothing in it could be embedded")
    about = {
        "sources": [Path(source).name for source in args.sources],
        "samples": len(samples),
        "prior": args.prior,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    calibration, checks = fit(found, prior=args.prior, model=fingerprint(folder), about=about)
    try:
        calibration.save(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error
    print_fits(calibration)
    if checks and args.plot:
        draw({" to ".join(pair): check for pair, check in checks.items()}, args.plot, f"prior {args.prior}")
    elif args.plot:
        files.say(f"{args.plot}: not drawn; there are too few pairs to check match probabilities on")
    say_banks(calibration, output)
    return files.exit_code(problems, sum(len(own.samples) for own in found.values()))


def print_fits(calibration: "Calibration") -> None:
    """The match probabilities of a calibration as a table."""
    rows = [
        (" to ".join(pair), f"{own.queries:,}", f"{own.a:.3f}", f"{own.b:.3f}", f"{own.error:.3f}")
        for pair, own in calibration.platt.items()
    ]
    if rows:
        print(format_table(("match", "queries", "a", "b", "error"), rows, right=range(1, 5)))


def say_banks(calibration: "Calibration", output: Path) -> None:
    """What a calibration has, on stderr."""
    if not calibration.platt:
        files.say("there are too few pairs for match probabilities")
    counts = ", ".join(f"{bank.count:,} {key}" for key, bank in calibration.banks.items())
    files.say(f"banks of {counts} in {output}")
