"""`onepeace bench loss`: the losses in tiles against all their logits at once, forward and backward.

Losses and gradients of both are compared before anything is measured. Memory is what is alive beside the inputs at the
peak, counted by live.py: the gradients, and all there is on the way to them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.bench.live import Live
from onepeace.bench.plain_step import SCALE, SMOOTHING, full_contrastive, full_denoising
from onepeace.bench.report import lines_of, short, spread
from onepeace.bench.timing import machine, take_turns
from onepeace.losses import contrastive, denoising

CLOSE = 1e-5
"""Relative, between losses and between gradients of both, as norms."""
TEMPERATURE = 14.0
HIDDEN = 0.5
"""Of the tokens, in the denoising loss."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Args:
        kinds: "contrastive" and "denoising".
        sizes: pairs of the contrastive loss, and tokens of the denoising loss.
        dim: width of the vectors.
        seconds: for each row of the table.
    """

    kinds: Sequence[str]
    sizes: Sequence[int]
    dim: int
    device: torch.device
    seconds: float


class Contest:
    """One loss of one size, computed both ways; "ours" and "full" give the loss and the gradients of `inputs`."""

    def __init__(self, kind: str, size: int, dim: int, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(size, dim, generator=generator).to(device) for _ in range(2))
        if kind == "contrastive":
            # Pairs that are hard to find: of easy ones the loss is close to 0, and nothing to compare by.
            scale = torch.tensor(TEMPERATURE, device=device)
            self.known = self.inputs = [F.normalize(a, dim=1), F.normalize(a + 4 * b, dim=1), scale]
            self.ways: dict[str, Callable[..., Tensor]] = {"ours": contrastive, "full": full_contrastive}
        else:
            targets = torch.arange(0, size, round(1 / HIDDEN), device=device)
            self.inputs = [a[targets] + b[targets]]
            self.known = [*self.inputs, b, targets]
            self.ways = {
                "ours": lambda queries: denoising(queries, b, targets, SCALE, SMOOTHING),
                "full": lambda queries: full_denoising(_unit(queries), _unit(b), targets, SCALE, SMOOTHING),
            }
        for tensor in self.inputs:
            tensor.requires_grad_()

    def run(self, way: str) -> tuple[Tensor, ...]:
        """The loss, and its gradients."""
        loss = self.ways[way](*self.inputs)
        return loss.detach(), *torch.autograd.grad(loss, self.inputs)

    def check(self) -> None:
        """RuntimeError unless both ways give the same."""
        for ours, full in zip(self.run("ours"), self.run("full"), strict=True):
            apart, size = float((ours - full).norm()), float(full.norm())
            if not apart <= CLOSE * size:
                raise RuntimeError(f"the losses in tiles and at once differ: {apart} apart, of {size}")

    def peak(self, way: str) -> int:
        """Bytes alive at once beside the inputs."""
        with Live(self.known) as live:
            self.run(way)
        return live.peak


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def bench_loss(settings: Settings, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns {"machine": ..., "rows": [...]}, plain values for JSON. `note` hears what is going on."""
    rows = []
    for kind in settings.kinds:
        for size in settings.sizes:
            note(f"{kind}, {size} ...")
            contest = Contest(kind, size, settings.dim, settings.device)
            contest.check()
            times = take_turns(
                {way: partial(contest.run, way) for way in contest.ways}, settings.seconds, settings.device
            )
            peaks = {way: contest.peak(way) for way in contest.ways}
            rows.append({
                "loss": kind,
                "size": size,
                "dim": settings.dim,
                "rounds": len(times["ours"]),
                "seconds": {way: spread(values) for way, values in times.items()},
                "ours_over_full": spread([a / b for a, b in zip(times["ours"], times["full"], strict=True)]),
                "peak_bytes": peaks,
                "memory_ours_over_full": peaks["ours"] / peaks["full"],
            })  # fmt: skip
    return {"machine": machine(settings.device), "seconds_per_row": settings.seconds, "rows": rows}


def table(report: Mapping[str, Any]) -> str:
    """The report for people, as Markdown: medians, quartiles in brackets."""
    head = ["loss", "size", "seconds", "ours / full, time", "MB", "ours / full, memory"]
    rows = []
    for row in report["rows"]:
        ratio, seconds, peaks = row["ours_over_full"], row["seconds"], row["peak_bytes"]
        size = str(row["size"])
        rows.append([
            f"{row['loss']}, dim {row['dim']}",
            f"{size} pairs" if row["loss"] == "contrastive" else f"{size} tokens, {HIDDEN:.0%} hidden",
            f"{short(seconds['ours']['median'])}, full {short(seconds['full']['median'])}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{short(peaks['ours'] / 1e6)}, full {short(peaks['full'] / 1e6)}",
            f"{row['memory_ours_over_full']:.3f}",
        ])  # fmt: skip
    return lines_of(head, rows, report["machine"])
