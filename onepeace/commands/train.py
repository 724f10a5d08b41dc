"""`onepeace train RECIPE [a.b=value ...]`: start or resume the run of a recipe; `--plan`: estimate its cost."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from onepeace.commands import files
from onepeace.commands.options import positive
from onepeace.errors import UsageError

if TYPE_CHECKING:
    from onepeace.cost.plan import Plan

SAMPLES = "data/samples"
"""Sample files of a checkout, on which to try a new model."""
USUAL_FLOPS = 200e12
"""FLOPs per second of a GPU, for the days of a plan; half of the bfloat16 peak is 156e12 (A100) or 495e12 (H100)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train a model from a recipe, or resume an interrupted run."
    parser.epilog = "example: onepeace train recipes/pretrain/tiny_image_text.yaml data.root=shards optim.lr=5e-4"
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, see recipes/README.md")
    parser.add_argument("overrides", metavar="a.b=value", nargs="*", default=[], help="override fields of the recipe")
    parser.add_argument("--print", action="store_true", dest="show", help="print the resolved recipe and stop")
    parser.add_argument("--plan", action="store_true", help="print parameters, memory per GPU and FLOPs, and stop")
    parser.add_argument("--processes", metavar="N", type=positive, help="number of GPUs for --plan (1)")


def run(args: argparse.Namespace) -> int:
    if args.processes and not args.plan:
        raise UsageError("--processes needs --plan; use torchrun to train on several GPUs")
    from onepeace.config import to_yaml
    from onepeace.train.recipe import read_recipe

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

    prints = os.environ.get("RANK", "0") == "0"  # only one of torchrun's processes does
    try:
        folder = train(recipe, evaluation(recipe))
    except KeyboardInterrupt:
        args.kept = kept_text(recipe.run.out) if prints else None
        raise
    if not prints:
        return 0
    print(folder)
    if (folder / "config.yaml").exists():
        place = SAMPLES if os.path.isdir(SAMPLES) else "FOLDER"
        print(f"try it: onepeace search {place} --text 'a dog' --model {folder}", file=sys.stderr)
    else:
        files.say(f"stopped; {kept_text(recipe.run.out)}")
    return 0


def kept_text(folder: str) -> str:
    """Sentence for the user about the checkpoint of a stopped run."""
    from onepeace.train.checkpoint_files import folders, step_of

    if saved := folders(folder):
        step = step_of(saved[-1])
        return f"the checkpoint of step {step} is kept; run the same command again to resume from it"
    return "no step was saved yet; run the same command again to start over"


def plan_text(plan: "Plan") -> str:
    """The output of ``--plan``."""
    items = ", ".join(f"{plan.recipe.batch_size(name)} {name}" for name in plan.flops_per_item)
    run, steps, memory = plan.recipe.run, plan.recipe.schedule.steps, plan.memory
    parts = f", computed in {run.grad_cache_chunks} parts" if run.grad_cache_chunks > 1 else ""
    precision = "float32" if run.precision == "float32" else "bfloat16"
    flops = steps * plan.flops_per_step
    rows = {
        f"GB on each GPU ({run.parallel})": "",
        "  weights, gradients, optimizer": f"{memory.states / 1e9:.2f}",
        "  exchanged": f"{memory.exchange / 1e9:.2f}",
        f"  activations, recompute: {run.recompute}": f"{memory.activations / 1e9:.2f}",
        "  total, plus a tenth for workspace": f"{memory.needed / 1e9:.2f}",
        "GB of a checkpoint": f"{plan.file / 1e9:.2f}",
        **{f"GFLOP of an item, {name}": f"{own / 1e9:,.1f}" for name, own in plan.flops_per_item.items()},
        "PFLOP of a step": f"{plan.flops_per_step / 1e15:.3g}",
        f"EFLOP of {steps} steps": f"{flops / 1e18:.3g}",
        f"days, at {USUAL_FLOPS / 1e12:.0f} TFLOP/s of a GPU": f"{flops / plan.processes / USUAL_FLOPS / 86400:.3g}",
    }
    if plan.recipe.model.get("heads"):
        rows["not counted: losses of the heads"] = ""
    lines = [f"{items} a step on {plan.processes} GPU{'s' * (plan.processes > 1)}{parts}, {precision}"]
    lines += [f"{plan.parameters:,} parameters, {plan.trained:,} of them trained", ""]
    return "\n".join([*lines, *(f"{name:<40}{value:>12}".rstrip() for name, value in rows.items())])
