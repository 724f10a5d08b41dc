"""`onepeace bench loss`: the losses in tiles against all their logits at once, forward and backward.

Losses and gradients of both are compared before anything is measured. Memory is what is alive beside the inputs at the
peak: the gradients, and all there is on the way to them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.bench.report import around, check_equal, markdown_report, short
from onepeace.bench.timing import machine, ratios, spread, take_turns
from onepeace.cost.live import Live
from onepeace.losses import contrastive, denoising

CLOSE = 1e-5
"""Relative, between losses and between gradients of both, as norms."""
LOGIT_SCALE = 14.0
SCALE, SMOOTHING = 2.5, 0.1
"""Of the denoising loss, as in the recipes."""
MASKED = 0.5
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


class Comparison:
    """One loss of one size, computed both ways; "ours" and "full" give the loss and the gradients of `inputs`."""

    def __init__(self, kind: str, size: int, dim: int, device: torch.device):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(size, dim, generator=generator).to(device) for _ in range(2))
        if kind == "contrastive":
            # Pairs that are hard to find: of easy ones the loss is close to 0, and nothing to compare by.
            scale = torch.tensor(LOGIT_SCALE, device=device)
            self.known = self.inputs = [F.normalize(a, dim=1), F.normalize(a + 4 * b, dim=1), scale]
            self.ways: dict[str, Callable[..., Tensor]] = {"ours": contrastive, "full": full_contrastive}
        else:
            targets = torch.arange(0, size, round(1 / MASKED), device=device)
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
        ours, full = ({str(i): t for i, t in enumerate(self.run(way))} for way in ("ours", "full"))
        check_equal(ours, full, CLOSE, "of the loss and its gradients, number")

    def peak(self, way: str) -> int:
        """Bytes alive at once beside the inputs."""
        with Live(self.known) as live:
            self.run(way)
        return live.peak


def full_contrastive(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Both directions over one whole matrix of logits."""
    with torch.autocast(a.device.type, enabled=False):
        logits = scale * a @ b.T
    targets = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def full_denoising(queries: Tensor, keys: Tensor, targets: Tensor, scale: float, smoothing: float) -> Tensor:
    """Smoothed as released: the mass of the wrong ones is shared by the others."""
    with torch.autocast(queries.device.type, enabled=False):
        logp = (scale * queries @ keys.T).log_softmax(1)
    each = smoothing / (len(keys) - 1)
    own = logp.gather(1, targets[:, None])[:, 0]
    return (-(1 - smoothing - each) * own - each * logp.sum(1)).mean()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def bench_loss(settings: Settings, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns {"machine": ..., "rows": [...]}, plain values for JSON. `note` hears what is going on."""
    rows = []
    for kind in settings.kinds:
        for size in settings.sizes:
            note(f"{kind}, {size} ...")
            comparison = Comparison(kind, size, settings.dim, settings.device)
            comparison.check()
            times = take_turns(
                {way: partial(comparison.run, way) for way in comparison.ways}, settings.seconds, settings.device
            )
            peaks = {way: comparison.peak(way) for way in comparison.ways}
            rows.append({
                "loss": kind,
                "size": size,
                "dim": settings.dim,
                "rounds": len(times["ours"]),
                "seconds": {way: spread(values) for way, values in times.items()},
                "ours_over_full": ratios(times, "ours", "full"),
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
            f"{size} pairs" if row["loss"] == "contrastive" else f"{size} tokens, {MASKED:.0%} masked",
            f"{short(seconds['ours']['median'])}, full {short(seconds['full']['median'])}",
            around(ratio),
            f"{short(peaks['ours'] / 1e6)}, full {short(peaks['full'] / 1e6)}",
            f"{row['memory_ours_over_full']:.3f}",
        ])  # fmt: skip
    return markdown_report(head, rows, report["machine"])
