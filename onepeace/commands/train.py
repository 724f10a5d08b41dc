"""`onepeace train RECIPE [a.b=value ...]`: run a recipe, or go on with it; `--plan`: say what it takes."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from onepeace.commands.options import positive
from onepeace.errors import UsageError

if TYPE_CHECKING:
    from onepeace.cost.plan import Plan

SAMPLES = "data/samples"
"""Of a checkout, to try a new model on."""

ROWS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "averaged weights",
    "exchange": "buckets, gathered",
    "activations": "activations",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a model as a recipe says; the same command goes on with a run that was interrupted."
    parser.epilog = "example: onepeace train recipes/pretrain/tiny_image_text.yaml data.root=shards optim.lr=5e-4"
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, see recipes/README.md")
    parser.add_argument("overrides", metavar="a.b=value", nargs="*", help="fields in place of the recipe's")
    parser.add_argument("--print", action="store_true", dest="show", help="print the resolved recipe and stop")
    parser.add_argument("--plan", action="store_true", help="print parameters, memory on a GPU and FLOPs, and stop")
    parser.set_defaults(kept="the run goes on from its last checkpoint with the same command")
    parser.add_argument("--processes", metavar="N", type=positive, help="how many GPUs --plan is for (1)")


def run(args: argparse.Namespace) -> int:
    if args.processes and not args.plan:
        raise UsageError("--processes is for --plan; torchrun starts a run on several GPUs")
    from onepeace.train.recipe import read_recipe, to_yaml

    recipe = read_recipe(args.recipe, args.overrides)
    if args.show:
        print(to_yaml(recipe), end="")
        return 0
    if args.plan:
        from onepeace.cost.plan import make_plan

        print(plan_text(make_plan(recipe, args.processes or 1)))
        return 0
    from onepeace.train.evaluation import evaluation
    from onepeace.train.loop import train

    folder = train(recipe, evaluation(recipe))
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's processes speaks for all
        return 0
    print(folder)
    if (folder / "config.yaml").exists():
        place = SAMPLES if os.path.isdir(SAMPLES) else "FOLDER"
        print(f"try it: onepeace search {place} --text 'a dog' --model {folder}", file=sys.stderr)
    return 0


def plan_text(plan: "Plan") -> str:
    """The tables of ``--plan``."""
    items = ", ".join(f"{count} {pair}" for pair, count in plan.items.items())
    run = plan.recipe.run
    parts = f", computed in {run.grad_cache_chunks} parts" if run.grad_cache_chunks > 1 else ""
    precision = "float32" if run.precision == "float32" else "bfloat16"
    lines = [f"{items} a step on {plan.processes} GPU{'s' * (plan.processes > 1)}{parts}, {precision}", ""]
    lines += [f"{plan.parameters:,} parameters, {plan.trained:,} of them trained", ""]
    again = ", checkpointed" * run.checkpoint_activations
    names = {way: f"{way}{again}{' *' * (way == run.parallel)}" for way in plan.memory}
    lines.append(f"{'GB on each GPU':<20}" + "".join(f"{name:>22}" for name in names.values()))
    for field, label in ROWS.items():
        values = [getattr(plan.memory[column], field) / 1e9 for column in names]
        lines.append(f"{label:<20}" + "".join(f"{value:>22.2f}" for value in values))
    lines.append(f"{'sum':<20}" + "".join(f"{sum(plan.memory[way]) / 1e9:>22.2f}" for way in names))
    lines += ["* what the recipe says; leave a tenth more for work space", ""]
    lines.append(f"{'checkpoint file':<20}{plan.file / 1e9:>12.2f} GB")
    lines += [f"{pair:<20}{flops / 1e9:>12,.1f} GFLOP an item" for pair, flops in plan.flops_per_item.items()]
    lines.append(f"{'step':<20}{plan.flops_per_step / 1e15:>12.3g} PFLOP")
    steps = plan.recipe.schedule.steps
    lines.append(f"{f'{steps} steps':<20}{steps * plan.flops_per_step / 1e18:>12.3g} EFLOP")
    return "\n".join(lines)
