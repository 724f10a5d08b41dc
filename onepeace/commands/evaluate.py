"""`onepeace evaluate`: a table of figures of a model on the sets of a recipe, or on a public test set by name."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import write_text_atomic

if TYPE_CHECKING:
    from onepeace.evaluate.run import EvaluationRecipe

EXAMPLES = """\
WHAT is a recipe, or the name of a public test set whose download lies in --data FOLDER: coco, flickr8k, flickr30k
(Karpathy's test splits), imagenet, cifar10, cifar100 (binary version), audiocaps, clotho, esc50 (all five folds),
urbansound8k, vggsound, fsd50k. FOLDER holds what `onepeace shards --layout NAME --help` says, and dataset_NAME.json of
Karpathy for the first three; or it is in CLIP_benchmark's webdataset layout (test/nshards.txt). Equal scores count
against the model. The 95 % intervals draw queries anew.

  onepeace evaluate recipes/evaluate/tiny.yaml --data shards
  onepeace evaluate recipes/evaluate/tiny.yaml sets.emoji=null sets.openclipart=null --data shards
  onepeace evaluate esc50 --data ESC-50-master --probe --model models/mine --save mine.jsonl
  onepeace evaluate --compare mine.jsonl other.jsonl

exit code: 0, 1 when a set could not be measured, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("what", nargs="?", metavar="WHAT", help="a YAML file, or the name of a public set; see below")
    parser.add_argument("override", nargs="*", metavar="a.b=value", help="fields in place of the recipe's")
    parser.add_argument("--model", metavar="NAME", help="a model name or folder (default: tiny)")
    parser.add_argument("--data", metavar="FOLDER", help="where the sets lie (default: $ONEPEACE_DATA)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: the best there is)")
    parser.add_argument("--probe", action="store_true", help="of a NAME: also linear probe and kNN on frozen vectors")
    parser.add_argument("--one-caption", action="store_true", help="of a NAME: one caption per picture or sound")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure instead of a table")
    parser.add_argument("--save", type=Path, metavar="FILE", help="also write the JSON, with every query's result")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="compare two such files")


def run(args: argparse.Namespace) -> int:
    """Print the figures. A set that fails is named on stderr, the others are measured, and the result is 1."""
    if args.compare:
        if args.what:
            raise UsageError("--compare takes two files and nothing to measure")
        names = ("model", "data", "device", "probe", "one_caption", "json", "save")
        if given := [name for name in names if getattr(args, name)]:
            raise UsageError(f"--{given[0].replace('_', '-')} is for measuring, and --compare reads what was measured")
        return _compare(*args.compare)
    if not args.what:
        raise UsageError("say what to measure: a recipe or a name; see: onepeace evaluate --help")
    if args.save:
        files.check_folder_of(args.save)
    args.model = args.model or "tiny"
    import onepeace
    from onepeace.evaluate.report import as_json, as_table
    from onepeace.evaluate.run import run as measure
    from onepeace.generative.generator import writes
    from onepeace.hub.fingerprint import fingerprint
    from onepeace.hub.folder import read_config
    from onepeace.hub.resolve import resolve

    recipe = _recipe(args)
    if not recipe.sets:
        raise UserError(f"{args.what}: no set is left to measure; leave out fewer of them")
    root = recipe.data.folder()
    wanted = any(protocol.needs_writer for protocol in recipe.sets.values())
    writer = wanted and writes(read_config(resolve(args.model)))
    model: Any = (onepeace.load_generator if writer else onepeace.load)(args.model, device=args.device)
    about: dict[str, Any] = {"model": args.model, "model_hash": fingerprint(resolve(args.model))}
    about |= {"dtype": str(model.dtype).removeprefix("torch."), "version": onepeace.__version__}
    failures: list[UserError] = []

    def failed(error: UserError) -> None:
        print(error, file=sys.stderr)
        failures.append(error)

    rows = []
    try:
        for row in measure(model, recipe.sets, root, failed):
            rows.append(row)
            if args.json:
                print(as_json(row, about), flush=True)
    finally:  # what was measured before an error or Ctrl-C has taken its time
        if rows and not args.json:
            print(as_table(rows))
        if rows and args.save:
            write_text_atomic(args.save, "".join(f"{as_json(row, about, per_query=True)}\n" for row in rows))
    if not rows and not failures:
        raise UserError(f"{args.what}: nothing was measured; the model has the modalities of no set")
    return 1 if failures else 0


def _recipe(args: argparse.Namespace) -> "EvaluationRecipe":
    from onepeace.evaluate.named import SETS, named_sets
    from onepeace.evaluate.run import DataRoot, read_recipe, recipe_from

    data = {"root": args.data} if args.data else {}
    if args.what in SETS:
        root = DataRoot(**data).folder()
        sets = named_sets(args.what, root, probe=args.probe, one_caption=args.one_caption)
        return recipe_from({"sets": sets, "data": {"root": str(root)}}, args.override, args.what)
    if args.probe or args.one_caption:
        raise UsageError("--probe and --one-caption are for a set by name; a recipe says it itself")
    if not Path(args.what).exists():
        raise UsageError(f"{args.what}: no such recipe, and no set of that name; there are {', '.join(SETS)}")
    return read_recipe(args.what, [*args.override, *([f"data.root={json.dumps(args.data)}"] if args.data else [])])


def _compare(first: Path, second: Path) -> int:
    from onepeace.evaluate.compare import as_table, compare, read_results, summary

    differences = compare(read_results(first), read_results(second))
    print(f"A: {first}\nB: {second}")
    print(as_table(differences))
    print(summary(differences))
    return 0
