"""The losses and scores of one or several runs as a picture, one panel each: python -m onepeace.train.curves RUN..."""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from onepeace.errors import UserError, need
from onepeace.train.log import FILE, read_log

BOOKKEEPING = {"step", "epoch", "seconds", "lr", "grad_norm", "items_per_second", "data_wait", "padding", "replaced",
               "peak_gigabytes", "logit_scale"}  # fmt: skip
"""Fields of the log that are neither a loss nor a score."""
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
"""Color-blind readers can tell them apart (Okabe and Ito)."""
COLUMNS = 3
SMOOTHED = 60
"""Above this number of points, a running mean is drawn, and the curve itself in a pale color."""

Curve = list[tuple[float, float]]


def labels(runs: list[str]) -> dict[str, Path]:
    """A short distinct name for each run: the parts of its path in which the runs differ."""
    paths = [Path(run).absolute() for run in dict.fromkeys(runs)]
    folders = [path.parent if path.is_file() else path for path in paths]
    common = Path(os.path.commonpath(folders)) if len(set(folders)) > 1 else folders[0].parent
    return {str(folder.relative_to(common)): path for folder, path in zip(folders, paths, strict=True)}


def read_curves(path: Path, from_step: int = 0) -> dict[str, Curve]:
    """{name: [(step, value), ...]} of a run's log, nested records under "a/b"."""
    path = path if path.is_file() else path / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run's folder holds a {FILE}")
    curves: dict[str, Curve] = {}
    for record in read_log(path):
        for name, value in _numbers(record):
            if record["step"] >= from_step and name not in BOOKKEEPING and math.isfinite(value):
                curves.setdefault(name, []).append((record["step"], value))
    if not curves:
        raise UserError(f"{path}: no loss and no score from step {from_step} on; nothing to draw")
    return curves


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, float(value)


def draw(curves: Mapping[str, Mapping[str, Curve]], output: Path) -> None:
    """One panel for each curve, one color for each run; the legend gives the last value, or the best of a score.

    Scores that every run has at most once make no curve: they are drawn as bars, in one panel below.
    """
    need("matplotlib", "plot")
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for run in curves.values() for name in run))
    # Losses first, the total before its terms; scores after.
    names.sort(key=lambda name: (not is_loss(name), name != "loss"))
    bars = [name for name in names if not is_loss(name) and all(len(run.get(name, ())) <= 1 for run in curves.values())]
    names = [name for name in names if name not in bars]
    columns = max(min(COLUMNS, len(names)), 2 if bars else 1)
    heights = [3.1] * math.ceil(len(names) / columns)
    heights += [0.7 + len(bars) * (0.1 + 0.15 * len(curves))] if bars else []
    figure = Figure(figsize=(4.6 * columns, sum(heights) + 0.7), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    handles: dict[str, Any] = {}
    if bars:
        handles.update(_draw_bars(figure.add_subplot(grid[-1, :]), bars, curves))
    for i, name in enumerate(names):
        axes = figure.add_subplot(grid[divmod(i, columns)])
        ends: dict[str, Any] = {}
        for color, (label, run) in zip(cycle(COLORS), curves.items(), strict=False):
            if name in run:
                handles[label] = ends[label] = _draw_curve(axes, run[name], color)
        axes.set_title(name, fontsize=9)
        summaries = [_summary(name, curves[label][name]) for label in ends]
        axes.legend(ends.values(), summaries, fontsize=7, framealpha=0.6)
        axes.set_xlabel("updates", fontsize=8)
        axes.set_ylabel("loss" if is_loss(name) else "score", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    figure.legend(
        handles.values(), handles.keys(), loc="outside upper center", ncols=min(4, len(handles)), frameon=False
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(output, format=output.suffix[1:] or "png")
    except ValueError as error:  # matplotlib names the endings it knows
        raise UserError(f"{output}: {error}") from error
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error


def is_loss(name: str) -> bool:
    """Whether lower is better: all but the scores of an evaluation."""
    return not name.startswith("valid/")


def _draw_bars(axes: Any, names: Sequence[str], curves: Mapping[str, Mapping[str, Curve]]) -> dict[str, Any]:
    """Draw horizontal bars, the value beside each; returns what the legend shows for each run."""
    handles = {}
    thickness = 0.8 / len(curves)
    for number, (color, (label, run)) in enumerate(zip(cycle(COLORS), curves.items(), strict=False)):
        places = [row + number * thickness for row, name in enumerate(names) if name in run]
        values = [run[name][0][1] for name in names if name in run]
        handles[label] = axes.barh(places, values, thickness, color=color)
        axes.bar_label(handles[label], fmt="%.3g", fontsize=7, padding=2)
    axes.set_yticks([row + (0.8 - thickness) / 2 for row in range(len(names))], names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.set_xlabel("score, measured once", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, axis="x")
    return handles


def _draw_curve(axes: Any, curve: Curve, color: str) -> Any:
    steps, values = zip(*curve, strict=True)
    if len(values) <= SMOOTHED:
        return axes.plot(steps, values, color=color, marker="." if len(values) < 20 else None)[0]
    axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
    width = max(2, len(values) // SMOOTHED)
    means = [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - width + 1) : i + 1])]
    return axes.plot(steps, means, color=color)[0]


def _summary(name: str, curve: Curve) -> str:
    if is_loss(name):
        return f"last {curve[-1][1]:.4g}"
    step, value = max(curve, key=lambda point: point[1])
    return f"best {value:.4g} at {step:.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the logs of runs, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m onepeace.train.curves", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a training run, or its log.jsonl")
    text = "picture, as its ending says: .png, .pdf, .svg ... (losses.png)"
    parser.add_argument("-o", "--output", type=Path, default=Path("losses.png"), metavar="FILE", help=text)
    parser.add_argument("--from-step", type=int, default=0, metavar="N", help="leave out the steps before N")
    args = parser.parse_args(arguments)
    try:
        curves = {label: read_curves(path, args.from_step) for label, path in labels(args.runs).items()}
        draw(curves, args.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    names = {name for run in curves.values() for name in run}
    print(f"{args.output}: {len(names)} curves of {len(curves)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
