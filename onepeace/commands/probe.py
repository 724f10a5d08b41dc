"""`onepeace probe SOURCE`: how well frozen vectors tell one's own classes apart, by a linear classifier and by kNN."""

import argparse
import sys
from pathlib import Path

from onepeace.commands import files, number
from onepeace.errors import UserError
from onepeace.files.table import format_table

EXAMPLES = """\
SOURCE is a folder with a folder for each class, or a .csv, .tsv or .jsonl with the columns image or audio, and label. A
fifth of each class, about 1,000 items in all at most, is held out and measured; the strength of the linear classifier
is chosen on a fifth of the rest. Nothing of the model is trained: it takes as long as the vectors take.

  onepeace probe pictures_by_class
  onepeace probe sounds.csv --model runs/mine/model --neighbours 10

exit code: 0, 1 when files could not be read (listed at the end), 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder or a table")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="tiny, a model folder or a released model")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--neighbours", type=number.positive, default=20, metavar="K", help="of kNN (default: 20)")


def run(args: argparse.Namespace) -> int:
    import numpy as np

    from onepeace.embed.embedder import load
    from onepeace.evaluate.intervals import interval
    from onepeace.evaluate.protocols.probe import Part, every_fifth, probe
    from onepeace.evaluate.report import between, shown
    from onepeace.files.walk import Unreadable
    from onepeace.finetune.own_data import read_own_data, split

    model = load(args.model, device=args.device)
    data = read_own_data(args.source, model.modalities)
    if not data.labelled:
        raise UserError(f"{args.source}: a probe needs a label for every item; there are captions only")
    rows = []
    for (modality, *_), records in data.groups.items():
        train, test = split(records)
        vectors = np.asarray(model.encode([{modality: one.inputs[modality]} for one in (*train, *test)]))
        labels = np.array([one.label for one in (*train, *test)])
        learned = np.arange(len(train))
        part = Part(learned, every_fifth(labels[learned]), np.arange(len(train), len(labels)))
        for figure in probe(vectors, labels, [part], ("linear", "knn"), args.neighbours, str(args.source)):
            spread = between(interval(figure.per_query), "mean")
            rows.append((modality, figure.metric, shown(figure.value, "mean"), spread, f"{figure.n:,}", figure.note))
    print(format_table(("kind", "metric", "value", "95%", "n", "chosen"), rows, right=(2, 4)))
    if data.left_out:
        print(f"onepeace: {data.described()} were read", file=sys.stderr)
    return files.exit_code([Unreadable(Path(where), reason) for where, reason in data.left_out], data.count)
