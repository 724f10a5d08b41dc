"""`onepeace evaluate`: a table of figures of a model on the sets of a recipe."""

import argparse
import json
import sys

from onepeace.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `onepeace evaluate` takes."""
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, such as recipes/evaluate/tiny.yaml")
    parser.add_argument(
        "override", nargs="*", metavar="a.b=value", help="a field of the recipe to set, value as in YAML"
    )
    parser.add_argument("--model", default="tiny", metavar="NAME", help="a model name or folder (default: tiny)")
    parser.add_argument("--data", metavar="FOLDER", help="where the sets lie (default: $ONEPEACE_DATA)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, ... (default: the best there is)")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure instead of a table")


def run(args: argparse.Namespace) -> int:
    """Prints the figures; 0 when no set failed, 1 when one did (named on stderr, the others are measured)."""
    import onepeace
    from onepeace.evaluate import benchmarks

    overrides = [*args.override, *([f"data.root={json.dumps(args.data)}"] if args.data else [])]
    recipe = benchmarks.read_recipe(args.recipe, overrides)
    root = benchmarks.data_root(recipe)
    model = onepeace.load(args.model, device=args.device)
    results: list[benchmarks.Row] = []
    failed = 0
    for name, benchmark in recipe.sets.items():
        try:
            rows = benchmarks.measure(model, name, benchmark, root)
        except UserError as error:
            print(error, file=sys.stderr)
            failed = 1
            continue
        if args.json:
            for row in rows:
                print(json.dumps({"model": args.model, **row._asdict(), "ratio": row.ratio}), flush=True)
        results += rows
    if results and not args.json:
        print(benchmarks.table(results))
    return failed
