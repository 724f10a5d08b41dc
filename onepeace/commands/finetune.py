"""`onepeace finetune FOLDER_OR_TABLE`: make the model better on one's own files, and show by how much."""

import argparse
from pathlib import Path

from onepeace.commands import files, options

EXAMPLES = """\
SOURCE is a folder of pictures or sounds, each with a caption in a .txt beside it (a.jpg, a.txt); a folder with a folder
for each class; or a .csv, .tsv or .jsonl with the columns image, audio, text, label, as far as there are any. A fifth,
about 1,000 items at most, is held out to measure the model before and after; files that are near copies of one another
(frames of a video, cuts of a recording, a burst of photographs) are held out together or not at all. FOLDER/model is
the new model, for every command, its weights averaged with the old ones as it does best on a fifth of the rest, which
is set apart for that; FOLDER/report.html says what it gained. The same command goes on with a fine-tuning that was
interrupted.

  onepeace finetune holidays/captions.csv -o runs/holidays
  onepeace finetune sounds_by_class -o runs/sounds schedule.steps=300
  onepeace finetune birds -o runs/birds --group "recording(\\d+)" --compare

exit code: 0, 1 when nothing can be learned, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder or a table")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields in place of the recipe's")
    options.add_output(parser, "FOLDER", "where everything goes; what is there goes on without --force")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="what to start from (tiny)")
    text = "files in whose paths this matches the same text are held out together, in place of near copies"
    parser.add_argument("--group", metavar="REGEX", help=text)
    text = "train heads alone, LoRA and all weights, on the same parts of the data, and compare them"
    parser.add_argument("--compare", action="store_true", help=text)
    parser.set_defaults(kept="what is done is kept, and the same command goes on with it")


def run(args: argparse.Namespace) -> int:
    from onepeace.finetune.report import NOTE, as_text, commands_to_try
    from onepeace.finetune.run import FineTuning
    from onepeace.finetune.split import read_parts

    tuning = FineTuning(
        args.source, args.output, args.model, tuple(args.overrides), args.group, args.compare, files.say
    )
    results = tuning.run(args.force)
    print(as_text(results))
    print(NOTE)
    for result in results:
        print(f"report: {result.report}")
    for line in commands_to_try(results[0], args.source, read_parts(tuning.data)):
        print(f"try it: {line}")
    return 0
