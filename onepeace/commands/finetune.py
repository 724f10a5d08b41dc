"""`onepeace finetune FOLDER_OR_TABLE`: make the model better on one's own files, and show by how much."""

import argparse
from pathlib import Path

from onepeace.commands import files, options

EXAMPLES = """\
SOURCE is a folder of pictures or sounds, each with a caption in a .txt beside it (a.jpg, a.txt); a folder with a folder
for each class; or a .csv, .tsv or .jsonl with the columns image, audio, text, label, as far as there are any. A fifth,
about 1,000 items at most, is held out to measure the model before and after. FOLDER/model is the new model, for every
command, its weights averaged with the old ones as it does best on a fifth of the rest, which is set apart for that;
FOLDER/report.html says what it gained. The same command goes on with a fine-tuning that was interrupted.

  onepeace finetune holidays/captions.csv -o runs/holidays
  onepeace finetune sounds_by_class -o runs/sounds schedule.steps=300

exit code: 0, 1 when nothing can be learned, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder or a table")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields in place of the recipe's")
    options.add_output(parser, "FOLDER", "where everything goes; what is there goes on without --force")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="what to start from (tiny)")
    parser.set_defaults(kept="what is done is kept, and the same command goes on with it")


def run(args: argparse.Namespace) -> int:
    from onepeace.evaluate.compare import as_table, compare, read_results
    from onepeace.finetune.report import commands_to_try
    from onepeace.finetune.run import AFTER, BEFORE, FineTuning

    tuning = FineTuning(args.source, args.output, args.model, tuple(args.overrides), files.say)
    report = tuning.run(args.force)
    print("A: before, B: after")
    print(as_table(compare(read_results(args.output / BEFORE), read_results(args.output / AFTER))))
    print(f"report: {report}")
    for line in commands_to_try(tuning):
        print(f"try it: {line}")
    return 0
