"""`onepeace train RECIPE [a.b=value ...]`: start or resume the run of a recipe; `--plan`: estimate its cost."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from onepeace.cards import CARDS
from onepeace.commands import files
from onepeace.commands.options import positive
from onepeace.errors import UsageError

if TYPE_CHECKING:
    from onepeace.train.recipe import Recipe

SAMPLES = "data/samples"
"""Sample files of a checkout, on which to try a new model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a model from a recipe, or resume an interrupted run."
    parser.epilog = "example:\n  onepeace train recipes/pretrain/tiny_image_text.yaml data.root=shards optim.lr=5e-4"
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, see recipes/README.md")
    parser.add_argument("overrides", metavar="a.b=value", nargs="*", default=[], help="override fields of the recipe")
    parser.add_argument("--print", action="store_true", dest="show", help="print the resolved recipe and stop")
    parser.add_argument("--plan", action="store_true", help="print memory and FLOPs of a step, and stop")
    parser.add_argument("--processes", metavar="N", type=positive, help="number of GPUs for --plan (1)")
    parser.add_argument("--card", choices=list(CARDS), help="the GPU for --plan (h100)")


def run(args: argparse.Namespace) -> int:
    if (args.processes or args.card) and not args.plan:
        raise UsageError("--processes and --card need --plan; use torchrun to train on several GPUs")
    from onepeace.config import to_yaml
    from onepeace.train.recipe import read_recipe

    files.check_input(args.recipe)
    recipe = read_recipe(args.recipe, args.overrides)
    if args.show:
        print(to_yaml(recipe), end="")
        return 0
    if args.plan:
        _print_plan(recipe, args.processes or 1, args.card or "h100")
        return 0
    _train(args, recipe)
    return 0


def _print_plan(recipe: "Recipe", processes: int, card: str) -> None:
    from onepeace.plan.plan import make_plan, plan_text

    print(plan_text(make_plan(recipe, processes, CARDS[card])))


def _train(args: argparse.Namespace, recipe: "Recipe") -> None:
    """Train, and say what there is now: a model to try, or a checkpoint to resume from."""
    from onepeace.train.evaluation import evaluation
    from onepeace.train.trainer import train

    is_first_process = os.environ.get("RANK", "0") == "0"  # of torchrun's processes; only this one prints
    try:
        folder = train(recipe, evaluation(recipe))
    except KeyboardInterrupt:
        args.kept = kept_text(recipe.run.out) if is_first_process else None
        raise
    if not is_first_process:
        return
    files.show(folder)
    if (folder / "config.yaml").exists():
        searched = SAMPLES if os.path.isdir(SAMPLES) else "FOLDER"
        print(f"try it: onepeace search {searched} --text 'a dog' --model {folder}", file=sys.stderr)
    else:
        files.say(f"stopped; {kept_text(recipe.run.out)}")


def kept_text(folder: str) -> str:
    """Sentence for the user about the checkpoint of a stopped run."""
    from onepeace.train.checkpoint import folders, step_of

    checkpoints = folders(folder)
    if checkpoints:
        step = step_of(checkpoints[-1])
        return f"the checkpoint of step {step} is kept; run the same command again to resume from it"
    return "no step was saved yet; run the same command again to start over"
