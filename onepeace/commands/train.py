"""`onepeace train RECIPE [a.b=value ...]`: run a recipe, or go on with it."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onepeace.train.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a model as a recipe says; the same command goes on with a run that was interrupted."
    parser.epilog = "example: onepeace train recipes/pretrain/tiny_image_text.yaml data.root=shards optim.lr=5e-4"
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, see recipes/README.md")
    parser.add_argument("overrides", metavar="a.b=value", nargs="*", help="fields in place of the recipe's")
    parser.add_argument("--print", action="store_true", dest="show", help="print the resolved recipe and stop")


def run(args: argparse.Namespace) -> int:
    from onepeace.train.recipe import read_recipe, to_yaml

    recipe = read_recipe(args.recipe, args.overrides)
    if args.show:
        print(to_yaml(recipe), end="")
        return 0
    from onepeace.train.loop import train

    folder = train(recipe, _evaluation(recipe))
    print(folder)
    print(f"try it: onepeace search FOLDER --text 'a dog' --model {folder}", file=sys.stderr)
    return 0


def _evaluation(recipe: "Recipe") -> Callable[[Any, Any], dict[str, float]] | None:
    """What the recipe's ``evaluate: {recipe: FILE}`` measures, on the same data root."""
    if not recipe.evaluate:
        return None
    from onepeace.evaluate import benchmarks

    wanted = benchmarks.read_recipe(recipe.evaluate["recipe"], [f"data.root={recipe.data.root}"])
    names = recipe.evaluate.get("sets", list(wanted.sets))
    chosen = benchmarks.BenchmarkRecipe({name: wanted.sets[name] for name in names}, wanted.data)

    def scores(model: Any, decoders: Any) -> dict[str, float]:
        from onepeace.api import Embedder

        rows = benchmarks.run(Embedder(model, decoders), chosen)
        print(benchmarks.table(rows), file=sys.stderr)
        return {f"{row.set}/{row.metric}": row.value for row in rows}

    return scores
