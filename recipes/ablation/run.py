"""Train every variant with several seeds and print a table of means and spreads: python recipes/ablation/run.py

Finished runs are kept and not trained again, so this can be stopped and started, and another process can train other
seeds at the same time. --table prints what there is.
"""

import argparse
import math
import statistics
from pathlib import Path

import towers  # noqa: F401  beside this file; registers the architecture

from onepeace.files.table import markdown_table
from onepeace.train.evaluation import evaluation
from onepeace.train.log import read_log
from onepeace.train.loop import train
from onepeace.train.recipe import read_recipe

BASE = Path(__file__).with_name("base.yaml")
NO_FUSED = ["objective.denoising/text+image=null"]
NO_DENOISING = [*NO_FUSED, "objective.denoising/text=null", "objective.denoising/image=null"]
VARIANTS = {
    "contrastive": NO_DENOISING,
    "contrastive, equal time": NO_DENOISING,
    "+ unimodal denoising": NO_FUSED,
    "+ fused denoising": [],
    "contrastive, separate towers": [*NO_DENOISING, "model.architecture=towers"],
}
FIGURES = {
    "tiny-ImageNet top-5": "valid/tiny_imagenet/top-5 of 202",
    "Flickr8k t2i R@10": "valid/flickr8k/text to image R@10",
    "Flickr8k i2t R@10": "valid/flickr8k/image to text R@10",
}


def minutes(out: Path) -> float:
    """Time of the training itself, from the speeds in the log."""
    lines = [line for line in read_log(out / "log.jsonl") if "seconds" in line]
    return sum(line["seconds"] for line in lines) / 60


def finished(out: Path) -> bool:
    """Whether the run was trained and measured to its end."""
    log = read_log(out / "log.jsonl") if (out / "log.jsonl").exists() else []
    return any(key in line for line in log for key in FIGURES.values())


def run(name: str, seed: int, root: Path, overrides: list[str]) -> None:
    """Train and measure a variant, unless that is done."""
    out = folder(root, name, seed)
    if finished(out):
        return
    steps = []
    if name == "contrastive, equal time":
        base = read_recipe(BASE, overrides).schedule.steps
        times = [minutes(folder(root, variant, seed)) for variant in ("contrastive", "+ fused denoising")]
        steps = [f"schedule.steps={round(base * times[1] / times[0])}"]
    recipe = read_recipe(BASE, [f"seed={seed}", f"run.out={out}", *overrides, *VARIANTS[name], *steps])
    train(recipe, evaluation(recipe))


def folder(root: Path, name: str, seed: int) -> Path:
    return root / f"{name} {seed}".replace("+ ", "plus ").replace(",", "").replace(" ", "-")


def table(root: Path) -> str:
    """The variants that there are runs of, with the mean and the standard deviation of each figure over the seeds."""
    rows = []
    for name in VARIANTS:
        runs = [out for seed in range(1, 99) if finished(out := folder(root, name, seed))]
        logs = [read_log(out / "log.jsonl") for out in runs]
        if not runs:
            continue
        cells = []
        for key in FIGURES.values():
            values = [100 * next(line[key] for line in reversed(log) if key in line) for log in logs]
            spread = statistics.stdev(values) if len(values) > 1 else math.nan
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        steps = round(statistics.mean(log[-1]["step"] for log in logs))
        spent = statistics.mean(minutes(out) for out in runs)
        rows.append([f"{name} ({len(runs)} seeds)", f"{steps}", f"{spent:.1f}", *cells])
    return markdown_table(["objective", "steps", "minutes", *FIGURES], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("overrides", nargs="*", help="a.b=value, of the recipe")
    args = parser.parse_args()
    order = sorted(VARIANTS, key=lambda name: "equal time" in name)  # its steps come from the times of others
    for seed in () if args.table else args.seeds:
        for name in order:
            run(name, seed, args.out, args.overrides)
    print(table(args.out))


if __name__ == "__main__":
    main()
