"""`onepeace evaluate`: the metrics of a model on the test sets of a recipe."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onepeace.commands import files, options
from onepeace.errors import UsageError, UserError
from onepeace.files.atomic import write_text_atomic
from onepeace.files.source import scheme

if TYPE_CHECKING:
    from onepeace.evaluate.report import ReportRow
    from onepeace.evaluate.run import EvaluationRecipe

EXAMPLES = """\
For public test sets, `onepeace shards --layout FILE.py` creates shards from a download; onepeace.plugins.mteb runs
mteb. To evaluate on your own classes, use `onepeace finetune FOLDER`. Ties count against the model. The 95 % intervals
are bootstrapped over queries.

  onepeace evaluate recipes/evaluate/tiny.yaml --data shards
  onepeace evaluate recipes/evaluate/tiny.yaml sets.emoji=null sets.openclipart=null --data shards
  onepeace evaluate recipes/evaluate/tiny.yaml --data shards --model models/mine -o mine.jsonl

exit code: 0, 1 when a set could not be measured, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file with test sets and protocols")
    parser.add_argument("override", nargs="*", default=[], metavar="a.b=value", help="override fields of the recipe")
    parser.add_argument("--data", metavar="FOLDER", help="folder of the test sets ($ONEPEACE_DATA)")
    text = "also write the metrics as JSON, with the result of every query"
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=text)
    parser.add_argument("--force", action="store_true", help="overwrite FILE if it exists")
    options.add_model(parser, batch_size=None, dtype=False)
    text = "float32, bfloat16, float16 or auto (float32, as published figures are compared in it)"
    parser.add_argument("--dtype", default="float32", metavar="NAME", help=text)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the metrics. Sets that fail are reported on stderr, and the exit code is then 1."""
    if args.output:
        files.check_output(args.output, args.force, inputs=[args.recipe])
    recipe = _recipe(args)
    failures: list[UserError] = []
    rows = _evaluate(args, recipe, failures)
    if not rows and not failures:
        raise UserError("nothing was evaluated; the model has the modalities of none of the sets", where=args.recipe)
    return 1 if failures else 0


def _evaluate(args: argparse.Namespace, recipe: "EvaluationRecipe", failures: list[UserError]) -> "list[ReportRow]":
    """Measure all sets, print the metrics and write the output file; errors of sets are added to ``failures``."""
    from onepeace.evaluate.report import as_json, as_table

    model = _load(args, recipe)
    about = _about(args.model, model)
    rows: list[ReportRow] = []
    try:
        for row in _measured(recipe, model, failures):
            rows.append(row)
            if args.json:
                print(as_json(row, about), flush=True)
    finally:  # keep what was measured before an error or Ctrl-C
        if rows and not args.json:
            print(as_table(rows))
        if rows and args.output:
            lines = [as_json(row, about, per_query=True) + "\n" for row in rows]
            write_text_atomic(args.output, "".join(lines))
    return rows


def _measured(recipe: "EvaluationRecipe", model: Any, failures: list[UserError]) -> "Iterator[ReportRow]":
    """Measure the sets one by one; errors are printed and added to ``failures``."""
    from onepeace.evaluate.run import run as measure
    from onepeace.progress import Progress

    def failed(error: UserError) -> None:
        print(error, file=sys.stderr)
        failures.append(error)

    last_set = None
    with Progress(len(recipe.sets), "set") as progress:
        for row in measure(model, recipe.sets, recipe.data.folder(), failed):
            progress.update(0 if row.set == last_set else 1)
            last_set = row.set
            yield row


def _about(name: str, model: Any) -> dict[str, Any]:
    """Model, precision and version to which the metrics belong."""
    from onepeace import __version__
    from onepeace.hub.resolve import fetch_model

    return {
        "model": name,
        "model_hash": fetch_model(name).identity.hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "version": __version__,
    }


def _recipe(args: argparse.Namespace) -> "EvaluationRecipe":
    from onepeace.evaluate.run import read_recipe

    files.check_input(args.recipe)
    if args.data and not scheme(args.data) and not Path(args.data).is_dir():
        raise UsageError("no such folder; data/README.md says how shards are made", where=args.data)
    overrides = list(args.override)
    if args.data:
        overrides.append(f"data.root={json.dumps(args.data)}")
    recipe = read_recipe(args.recipe, overrides)
    if not recipe.sets:
        raise UserError("no test set is left; set fewer of them to null", where=args.recipe)
    return recipe


def _load(args: argparse.Namespace, recipe: "EvaluationRecipe") -> Any:
    """The model; a generative one if a set needs it."""
    import onepeace
    from onepeace.hub.architectures import can_write
    from onepeace.hub.resolve import fetch_model

    needs_writer = any(protocol.needs_writer for protocol in recipe.sets.values())
    if needs_writer and can_write(fetch_model(args.model).config):
        return onepeace.load_generator(args.model, device=args.device, dtype=args.dtype)
    return options.load(args)
