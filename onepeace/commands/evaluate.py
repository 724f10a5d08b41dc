"""`onepeace evaluate`: a table of figures of a model on the sets of a recipe."""

import argparse
import json
import sys

from onepeace.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/evaluate/tiny.yaml")
    parser.add_argument("override", nargs="*", metavar="a.b=value", help="fields in place of the recipe's")
    parser.add_argument("--model", default="tiny", metavar="NAME", help="a model name or folder (default: tiny)")
    parser.add_argument("--data", metavar="FOLDER", help="where the sets lie (default: $ONEPEACE_DATA)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: the best there is)")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure instead of a table")


def run(args: argparse.Namespace) -> int:
    """Print the figures. A set that fails is named on stderr, the others are measured, and the result is 1."""
    import onepeace
    from onepeace.evaluate.report import as_json, as_table
    from onepeace.evaluate.run import read_recipe
    from onepeace.evaluate.run import run as measure

    overrides = [*args.override, *([f"data.root={json.dumps(args.data)}"] if args.data else [])]
    recipe = read_recipe(args.recipe, overrides)
    root = recipe.data.folder()
    model = onepeace.load(args.model, device=args.device)
    failures: list[UserError] = []

    def failed(error: UserError) -> None:
        print(error, file=sys.stderr)
        failures.append(error)

    rows = []
    for row in measure(model, recipe.sets, root, failed):
        rows.append(row)
        if args.json:
            print(as_json(row, args.model), flush=True)
    if rows and not args.json:
        print(as_table(rows))
    return 1 if failures else 0
