"""`onepeace calibrate`: unrelated pictures and sounds of a model, which its match compares pictures and sounds with."""

import argparse

from onepeace.commands import files, options
from onepeace.commands.options import positive

EXAMPLES = f"""\
Queries of words have a match with every model: the words and sentences to compare them with come with the package.
Queries that are pictures or sounds have one when calibration.safetensors is in the model's folder. This makes it, from
1,000 pictures and 1,000 sounds. SOURCES are shards, tables and folders, as `onepeace index build` takes them; of each
come as many: take many kinds of generic things. Only vectors are kept, of what is least like the rest.

  onepeace calibrate runs/laptop/model photos recordings
  onepeace calibrate runs/laptop/model "shards/coco-*.tar" "shards/sounds-*.tar" --force

{files.EXIT_CODES}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("model", metavar="MODEL", help="a model folder; the file is written into it")
    parser.add_argument("sources", nargs="+", metavar="SOURCES", help="generic pictures and sounds")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (the best there is)")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="files in one pass (32)")


def run(args: argparse.Namespace) -> int:
    from onepeace.files.atomic import write_atomic
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.resolve import resolve
    from onepeace.index.calibrate import FILE, calibrate

    folder = resolve(args.model)
    output = folder / FILE
    files.check_output(output, args.force)
    args.dtype = "float32"
    model = options.load(args)
    problems: list[files.Unreadable] = []
    banks = calibrate(model, args.sources, problems, model=fingerprint(folder), batch_size=args.batch_size)
    with write_atomic(output) as temporary:
        temporary.write_bytes(banks.to_bytes())
    counts = {bank: len(rows) for bank, rows in banks.vectors.items()}
    files.say(f"{', '.join(f'{count} of {bank}' for bank, count in counts.items())} in {output}")
    return files.exit_code(problems, sum(counts.values()))
