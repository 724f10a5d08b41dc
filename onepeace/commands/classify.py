"""`onepeace classify`: which of some labels fits each file best, without training (zero-shot)."""

import argparse
import json
import os
from pathlib import Path

from onepeace.commands import files, number
from onepeace.errors import UsageError
from onepeace.files.table import format_table
from onepeace.files.walk import Found

EXAMPLES = """\
a label is put into a sentence that suits the kind of file, unless --template gives another.

  onepeace classify pictures --labels dog,cat,bird
  onepeace classify sounds --labels-file names.txt --template "{}" --top 3 --json

exit code: 0, 1 when files could not be read (listed at the end), 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    files.add_arguments(parser)
    parser.epilog = EXAMPLES
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", metavar="A,B,C", help="names to choose from")
    labels.add_argument("--labels-file", type=Path, metavar="FILE", help="the same, one name on each line")
    parser.add_argument("--template", metavar="T", help='sentence with {} for the label, e.g. "a drawing of a {}"')
    parser.add_argument(
        "--top", type=number.positive, default=1, metavar="K", help="labels shown of each file (default: 1)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of a table")


def run(args: argparse.Namespace) -> int:
    labels = _labels(args)
    if args.template is not None and "{}" not in args.template and "{a}" not in args.template:
        raise UsageError(f"--template {args.template!r} has no {{}} for the label to go in")
    found, problems = files.find(args)

    from onepeace.embed.zero_shot import TEMPLATE, prototypes

    model = files.load(args)
    vectors, found, failed = files.encode(model, found, args.batch_size)
    answers: dict[Found, list[tuple[str, float]]] = {file: [] for file in found}
    for modality in sorted({file.modality for file in found}):
        rows = [index for index, file in enumerate(found) if file.modality == modality]
        classes = prototypes(model.encode_text, labels, args.template or TEMPLATE.get(modality, "{}"))
        probabilities = (model.logit_scale * vectors[rows] @ classes.T).softmax(dim=1)
        best = probabilities.sort(dim=1, descending=True, stable=True)
        for row, values, numbers in zip(rows, best.values.tolist(), best.indices.tolist(), strict=True):
            ranked = [(labels[number], value) for number, value in zip(numbers, values, strict=True)]
            answers[found[row]] = ranked[: args.top]
    if args.json:
        for file, ranked in answers.items():
            scores = [{"label": label, "probability": round(share, 6)} for label, share in ranked]
            print(json.dumps({"path": os.fspath(file.path), "modality": file.modality, "labels": scores}))
    elif answers:
        lines = [
            (", ".join(f"{label} {share:.2f}" for label, share in ranked), file.modality, files.shown(file.path))
            for file, ranked in answers.items()
        ]
        print(format_table(("label", "kind", "path"), lines))
    return files.exit_code([*problems, *failed], len(answers))


def _labels(args: argparse.Namespace) -> list[str]:
    names = args.labels.split(",") if args.labels_file is None else files.lines_of(args.labels_file, "labels")
    labels = [name.strip() for name in names if name.strip()]
    if not labels:
        raise UsageError("there are no labels; give at least one name to choose from")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice:
        raise UsageError(f"label {twice!r} is given twice")
    return labels
