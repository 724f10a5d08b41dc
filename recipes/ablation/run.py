"""Train every variant of a study with several seeds and print a table of means and spreads:
python recipes/ablation/run.py recipes/ablation/shared.yaml

A study names a base recipe, the metrics to report and the variants, each by its overrides. The result of a run is a
line of OUT.jsonl. Runs with a result are not trained again, so this can be stopped and started, and another process can
train other seeds at the same time. --table prints existing results; results/ has those that docs/results/log.md shows.
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import towers  # noqa: F401  beside this file; registers the architecture

from onepeace.config import build, read_yaml
from onepeace.files.table import markdown_table
from onepeace.train.evaluation import evaluation
from onepeace.train.logging import read_log
from onepeace.train.recipe import read_recipe
from onepeace.train.trainer import train


@dataclass(frozen=True)
class Variant:
    """A row of the table: the base recipe with overrides."""

    overrides: tuple[str, ...] = ()
    """Fields of the base recipe, as "a.b=value"."""
    time_of: str | None = None
    """Another variant, whose training time this one gets by taking more or fewer steps."""
    steps_of: str | None = None
    """With ``time_of``: the variant with the same overrides, whose training time is known."""


@dataclass(frozen=True)
class Study:
    """Rows and columns of a table."""

    base: str
    """Path of the recipe, relative to the study's file."""
    figures: dict[str, str]
    """Column -> name of a score in the log, as "valid/flickr8k/text to image R@10"."""
    variants: dict[str, Variant]
    select: str | None = None
    """Score on separate data: the figures are of the step where it is best (early stopping); null = the last step."""
    overrides: tuple[str, ...] = field(default=())
    """Overrides of all variants."""


@dataclass(frozen=True)
class Result:
    """Result of a run."""

    variant: str
    seed: int
    step: int
    """Step of the figures."""
    minutes: float
    """Training time, see minutes()."""
    figures: dict[str, float]
    """Column of the table -> score at that step, as a fraction."""


class Runs:
    """The runs of a study in a folder, and a file with their results next to it."""

    def __init__(self, path: Path, root: Path, overrides: list[str]):
        content: Any = read_yaml(path)
        self.study = build(Study, content, str(path))
        self.base, self.root, self.overrides = path.parent / self.study.base, root, overrides

    @property
    def file(self) -> Path:
        """File of the results, a JSON object per line."""
        return self.root.with_name(f"{self.root.name}.jsonl")

    def results(self) -> list[Result]:
        """Results of all completed runs."""
        if not self.file.exists():
            return []
        return [Result(**json.loads(line)) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def folder(self, name: str, seed: int) -> Path:
        kept = "".join(letter if letter.isalnum() else "-" for letter in f"{name} {seed}")
        return self.root / "-".join(part for part in kept.split("-") if part)

    def train(self, name: str, seed: int) -> None:
        """Train and measure a variant, unless it has a result."""
        if any((each.variant, each.seed) == (name, seed) for each in self.results()):
            return
        variant = self.study.variants[name]
        own = [f"seed={seed}", *self.study.overrides, *self.overrides, *variant.overrides]
        own.append(f"run.out={self.folder(name, seed)}")
        if variant.time_of is not None:
            plain = read_recipe(self.base, own)
            minutes_of = {each.variant: each.minutes for each in self.results() if each.seed == seed}
            ratio = minutes_of[variant.time_of] / minutes_of[variant.steps_of or name]
            own.append(f"schedule.steps={round(plain.schedule.steps * ratio)}")
            own.append(f"run.eval_every={round(plain.run.eval_every * ratio)}")  # equally many steps to choose from
        recipe = read_recipe(self.base, own)
        train(recipe, evaluation(recipe))
        log = read_log(self.folder(name, seed) / "log.jsonl")
        chosen = self._chosen(log)
        figures = {column: chosen[key] for column, key in self.study.figures.items()}
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(Result(name, seed, chosen["step"], minutes(log), figures))) + "\n")

    def table(self) -> str:
        """Table of the variants with results: mean and standard deviation of each figure over seeds, in percent."""
        rows = []
        for name in self.study.variants:
            reached = [each for each in self.results() if each.variant == name]
            if not reached:
                continue
            cells = []
            for column in self.study.figures:
                values = [100 * each.figures[column] for each in reached]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            step = round(statistics.mean(each.step for each in reached))
            spent = statistics.mean(each.minutes for each in reached)
            rows.append([f"{name} ({len(reached)} seed{'s' * (len(reached) > 1)})", f"{step}", f"{spent:.1f}", *cells])
        return markdown_table(["variant", "steps", "minutes", *self.study.figures], rows)

    def _chosen(self, log: list[dict[str, Any]]) -> dict[str, Any]:
        """The scores of the selected step."""
        measured = [line for line in log if all(key in line for key in self.study.figures.values())]
        select = self.study.select
        return max(measured, key=lambda line: line[select]) if select else measured[-1]


def minutes(log: list[dict[str, Any]]) -> float:
    """Training time: the median of the log's lines times their number. A mean would include delays by other programs on
    the machine."""
    seconds = [line["seconds"] for line in log if "seconds" in line]
    return statistics.median(seconds) * len(seconds) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, help="folder of the runs (runs/STUDY); results are in OUT.jsonl")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated (1,2,3)")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("overrides", nargs="*", help="a.b=value: changes to the recipe")
    args = parser.parse_intermixed_args()
    runs = Runs(args.study, args.out or Path("runs") / args.study.stem, args.overrides)
    for seed in () if args.table else map(int, args.seeds.split(",")):
        # Variants whose steps depend on the times of other variants come last.
        for name in sorted(runs.study.variants, key=lambda name: runs.study.variants[name].time_of is not None):
            runs.train(name, seed)
    print(runs.table())


if __name__ == "__main__":
    main()
