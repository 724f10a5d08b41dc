"""Do probabilities keep their promise? Of all that is called 70 % likely, 70 % should be true."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onepeace.errors import UserError, need

BINS = 10


@dataclass(frozen=True)
class Reliability:
    """Probabilities in `BINS` bins of equal width; bins that got none are left out, so B is `BINS` or less."""

    said: NDArray[np.float64]
    """(B,) mean probability."""
    true: NDArray[np.float64]
    """(B,) share of what was true."""
    weight: NDArray[np.float64]
    """(B,) share of all weight; the sum is 1."""

    @classmethod
    def of(cls, probabilities: ArrayLike, truths: ArrayLike, weights: ArrayLike | None = None) -> "Reliability":
        """Of n probabilities, what came true (0/1), and how much each counts; ValueError for NaN or for none."""
        p, y = (np.asarray(values, dtype=np.float64) for values in (probabilities, truths))
        w = np.ones_like(p) if weights is None else np.asarray(weights, dtype=np.float64)
        if p.size == 0 or not ((p >= 0) & (p <= 1)).all():
            raise ValueError(f"{p.size} probabilities, not all of them in 0..1")
        bins = np.minimum((p * BINS).astype(int), BINS - 1)
        sums = [np.bincount(bins, weights=w * values, minlength=BINS) for values in (np.ones_like(p), p, y)]
        weight, said, true = (each[sums[0] > 0] for each in sums)
        return cls(said / weight, true / weight, weight / weight.sum())

    @property
    def error(self) -> float:
        """Expected calibration error: the mean distance of probability and share, each bin by its weight."""
        return float(self.weight @ np.abs(self.said - self.true))


def draw(curves: Mapping[str, Reliability], output: Path, title: str = "") -> None:
    """A reliability diagram: what was said against what was true, and below how often it was said.

    Raises:
        UserError: no matplotlib, an unknown file ending, or a file that cannot be written.
    """
    style = need("matplotlib.style", "plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 6.5), layout="constrained", dpi=150)
    with style.context("tableau-colorblind10"):
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    above.plot((0, 1), (0, 1), color="#999999", linestyle="--", linewidth=1)
    for name, curve in curves.items():
        above.plot(curve.said, curve.true, "o-", markersize=3, label=f"{name} (error {curve.error:.3f})")
        below.plot(curve.said, curve.weight, "o-", markersize=3)
    above.set_ylabel("share that is true")
    above.set_title(title, fontsize=10)
    above.legend(fontsize=8)
    below.set_yscale("log")
    below.tick_params(axis="y", which="minor", labelleft=False)
    below.set_ylabel("how often")
    below.set_xlabel("match probability")
    for axes in (above, below):
        axes.grid(alpha=0.25)
    try:
        figure.savefig(output, format=output.suffix[1:] or "png")
    except ValueError as error:  # matplotlib names the endings it knows
        raise UserError(f"{output}: {error}") from error
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error
