"""Train every variant with several seeds and print a table of means and spreads: python recipes/ablation/run.py

Finished runs are kept and not made again, so it can be stopped and started, and other seeds can be trained at the same
time by another process. --table prints what there is.
"""

import argparse
import copy
import math
import statistics
from pathlib import Path

from torch import nn

from onepeace.commands.train import evaluation
from onepeace.errors import UserError
from onepeace.model import OnePeace
from onepeace.model.encoder import encode
from onepeace.train import build, loop
from onepeace.train.log import read_log
from onepeace.train.recipe import read_recipe

NO_TOGETHER = ["objective.denoising/text+image=null"]
NO_DENOISING = [*NO_TOGETHER, "objective.denoising/text=null", "objective.denoising/image=null"]
VARIANTS = {
    "contrastive": NO_DENOISING,
    "contrastive, equal time": NO_DENOISING,
    "+ unimodal denoising": NO_TOGETHER,
    "+ fused denoising": [],
    "contrastive, separate towers": NO_DENOISING,
}
FIGURES = {
    "tiny-ImageNet top-5": "valid/tiny_imagenet/top-5 of 202",
    "Flickr8k t2i R@10": "valid/flickr8k/text to image R@10",
    "Flickr8k i2t R@10": "valid/flickr8k/image to text R@10",
}


class Towers(OnePeace):
    """A Transformer for each modality: blocks of the same shape and cost per item, nothing shared but the loss."""

    def __init__(self, config):
        super().__init__(config)
        self.towers = nn.ModuleDict({key: copy.deepcopy(self.blocks) for key in self.adapters})
        for tower in self.towers.values():
            for module in tower.modules():
                if hasattr(module, "reset_parameters") and not isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
        self.reset_parameters()
        del self.blocks[:]

    def encode(self, stems, keep=None):
        ((key, stem),) = stems.items()
        return encode(self.adapters[key].embed_positions(stem, (keep or {}).get(key)), self.towers[key], self.norms)


def minutes(out: Path) -> float:
    """Time of the training itself, from the speeds in the log."""
    lines = [line for line in read_log(out / "log.jsonl") if "seconds" in line]
    return sum(line["seconds"] for line in lines) / 60


def finished(out: Path) -> bool:
    """Whether the run was trained and measured to its end."""
    log = read_log(out / "log.jsonl") if (out / "log.jsonl").exists() else []
    return any(key in line for line in log for key in FIGURES.values())


def run(name: str, seed: int, root: Path, overrides: list[str]) -> None:
    out = folder(root, name, seed)
    if finished(out):
        return
    steps = []
    if name == "contrastive, equal time":
        base = read_recipe("recipes/ablation/base.yaml", overrides).schedule.steps
        times = [minutes(folder(root, variant, seed)) for variant in ("contrastive", "+ fused denoising")]
        steps = [f"schedule.steps={round(base * times[1] / times[0])}"]
    given = [f"seed={seed}", f"run.out={out}", *overrides, *VARIANTS[name], *steps]
    recipe = read_recipe("recipes/ablation/base.yaml", given)
    loop.OnePeace = build.OnePeace = Towers if "towers" in name else OnePeace
    try:
        loop.train(recipe, evaluation(recipe))
    except UserError:  # a model folder holds the shared model only; the figures are in the log by then
        if not finished(out):
            raise


def folder(root: Path, name: str, seed: int) -> Path:
    return root / f"{name} {seed}".replace("+ ", "plus ").replace(",", "").replace(" ", "-")


def table(root: Path) -> None:
    print("| objective | steps | minutes | " + " | ".join(FIGURES) + " |")
    print("| --- | ---: | ---: |" + " ---: |" * len(FIGURES))
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
        print(f"| {name} ({len(runs)} seeds) | {steps} | {spent:.1f} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("overrides", nargs="*", help="a.b=value, of the recipe")
    args = parser.parse_args()
    order = ["contrastive", "+ fused denoising", "+ unimodal denoising", "contrastive, separate towers"]
    order.append("contrastive, equal time")
    for seed in () if args.table else args.seeds:
        for name in order:
            run(name, seed, args.out, args.overrides)
    table(args.out)


if __name__ == "__main__":
    main()
