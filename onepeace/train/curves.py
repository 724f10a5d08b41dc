"""The losses and scores of one or several runs as a picture, one panel each: python -m onepeace.train.curves RUN..."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from onepeace.errors import UserError, need
from onepeace.train.log import FILE, read_log

BOOKKEEPING = {"step", "seconds", "lr", "grad_norm", "items_per_second", "data_wait", "padding", "replaced",
               "peak_gigabytes", "logit_scale"}  # fmt: skip
"""Fields of the log that are neither a loss nor a score."""
COLUMNS = 3

Curve = list[tuple[int, float]]


def read_curves(path: Path) -> dict[str, Curve]:
    """{name: [(step, value), ...]} of a run's log, given by its folder or its file."""
    path = path if path.is_file() else path / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; a run's folder holds a {FILE}")
    curves: dict[str, Curve] = {}
    for record in read_log(path):
        for name, value in record.items():
            if name not in BOOKKEEPING and math.isfinite(value):
                curves.setdefault(name, []).append((record["step"], value))
    if not curves:
        raise UserError(f"{path}: no loss and no score; nothing to draw")
    return curves


def draw(curves: Mapping[str, Mapping[str, Curve]], output: Path) -> None:
    """One panel for each loss or score, one color for each run; the legend gives the last values."""
    need("matplotlib", "plot")
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for run in curves.values() for name in run))
    # Losses first, the total before its terms; scores after.
    names.sort(key=lambda name: (name.startswith("valid/"), name != "loss"))
    columns = min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows), layout="constrained")
    for i, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, i + 1)
        for number, (label, run) in enumerate(curves.items()):
            if name in run:
                steps, values = zip(*run[name], strict=True)
                marker = "." if len(values) < 20 else None
                axes.plot(steps, values, color=f"C{number}", marker=marker, label=f"{label}: {values[-1]:.4g}")
        axes.set_title(name, fontsize=9)
        axes.legend(fontsize=7, framealpha=0.6)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    try:
        figure.savefig(output)
    except (ValueError, OSError) as error:  # matplotlib names the endings it knows
        raise UserError(f"{output}: cannot be written ({error})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the logs of runs, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m onepeace.train.curves", description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a training run, or its log.jsonl")
    text = "picture, as its ending says: .png, .pdf, .svg ... (losses.png)"
    parser.add_argument("-o", "--output", type=Path, default=Path("losses.png"), metavar="FILE", help=text)
    args = parser.parse_args(arguments)
    try:
        curves = {run: read_curves(Path(run)) for run in args.runs}
        draw(curves, args.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    names = {name for run in curves.values() for name in run}
    print(f"{args.output}: {len(names)} curves of {len(curves)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
