"""`onepeace finetune FOLDER_OR_TABLE`: make the model better on one's own files, and show by how much."""

import argparse
from pathlib import Path

from onepeace.commands import files

EXAMPLES = """\
SOURCE is a folder of pictures or sounds, each with a caption in a .txt beside it (a.jpg, a.txt); a folder with a folder
for each class; or a .csv, .tsv or .jsonl with the columns image, audio, text, label, as far as there are any. A fifth,
about 1,000 items at most, is held out to measure the model before and after. OUT/model is the new model, for every
command, its weights averaged with the old ones as it does best on a fifth of the rest, which is set apart for that;
OUT/report.html says what it gained. The same command goes on with a fine-tuning that was interrupted.

  onepeace finetune holidays/captions.csv --out runs/holidays
  onepeace finetune sounds_by_class --out runs/sounds schedule.steps=300

exit code: 0, 1 when nothing can be learned, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder or a table")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields in place of the recipe's")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune"), metavar="DIR", help="default: runs/finetune")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="what to start from (default: tiny)")
    parser.add_argument("--overwrite", action="store_true", help="begin anew where --out holds a fine-tuning")


def run(args: argparse.Namespace) -> int:
    from onepeace.evaluate.compare import as_table, compare, read_results
    from onepeace.finetune.report import commands_to_try
    from onepeace.finetune.run import AFTER, BEFORE, FineTuning

    tuning = FineTuning(args.source, args.out, args.model, tuple(args.overrides), files.say)
    report = tuning.run(args.overwrite)
    print("A: before, B: after")
    print(as_table(compare(read_results(args.out / BEFORE), read_results(args.out / AFTER))))
    print(f"report: {report}")
    for line in commands_to_try(tuning):
        print(f"try it: {line}")
    return 0
