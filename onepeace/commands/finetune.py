"""`onepeace finetune FOLDER_OR_TABLE`: fine-tune the model on your own files, and report the improvement."""

import argparse
from pathlib import Path

from onepeace.commands import files, options

EXAMPLES = """\
SOURCE is a folder of pictures or sounds, each with a caption in a .txt file beside it (a.jpg, a.txt); a folder with one
subfolder per class; a .csv, .tsv, .jsonl or .parquet with some of the columns image, audio, text, label; or a data set
folder of datasets (Hugging Face) with such columns. A fifth of the items, at most about 1,000, is held out to evaluate
the model before and after; near copies (frames of a video, cuts of a recording, a burst of photographs) are held out
together or not at all. FOLDER/model is the new model. Its weights are averaged with the old ones, by the share that is
best on a validation set (a fifth of the rest); FOLDER/report.html reports the improvement. Run the same command again
to resume an interrupted fine-tuning.

  onepeace finetune holidays/captions.csv -o runs/holidays
  onepeace finetune sounds_by_class -o runs/sounds schedule.steps=300
  onepeace finetune birds -o runs/birds --group "recording(\\d+)"

exit code: 0, 1 when nothing can be learned, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder, a table or a data set")
    parser.add_argument("overrides", nargs="*", default=[], metavar="a.b=value", help="override fields of the recipe")
    options.add_output(parser, "FOLDER", "output folder; an interrupted run in it is resumed unless --force is given")
    options.add_table(parser)
    parser.add_argument("--model", default="tiny", metavar="NAME", help="initial model (tiny)")
    text = "hold out files together if their paths match this with the same text, instead of near copies"
    parser.add_argument("--group", metavar="REGEX", help=text)


def run(args: argparse.Namespace) -> int:
    from onepeace.finetune.report import as_text, commands_to_try, note
    from onepeace.finetune.run import IDENTITY, FineTuning

    tuning = FineTuning(
        source=args.source,
        out=args.output,
        model=args.model,
        overrides=tuple(args.overrides),
        group=args.group,
        columns=dict(args.column),
        split=args.split,
        say=files.say,
    )
    try:
        result = tuning.run(args.force)
    except KeyboardInterrupt:
        args.kept = "nothing was written"
        if (args.output / IDENTITY).exists():
            without = " without --force" if args.force else ""
            args.kept = f"finished stages and checkpoints are kept; run the same command again{without} to resume"
        raise
    print(as_text(result))
    print(note(result.summary))
    files.show(f"report: {result.report}")
    for line in commands_to_try(result, args.source):
        files.show(f"try it: {line}")
    return 0
