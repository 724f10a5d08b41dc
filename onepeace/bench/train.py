"""`onepeace bench train`: steps of a recipe beside a baseline of the same losses.

The baseline is the same objective without groups of similar length: every item is computed as long as the batch's
longest. Losses and gradients of both are compared in float32 before anything is measured. Memory is what is alive
beside weights, gradients and inputs at the peak of a step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from onepeace.bench.report import around, check_equal, dtype_name, markdown_report, short
from onepeace.bench.timing import machine, ratios, spread, take_turns
from onepeace.cost.dry_run import as_on_a_gpu, fake_module, step_cost
from onepeace.cost.items import inputs_of_many_lengths, made_up_teachers, pair_batch
from onepeace.cost.live import Live
from onepeace.cost.plan import planned_config, planned_model
from onepeace.hub.architectures import build_module
from onepeace.train.objective import Objective
from onepeace.train.optim import freeze
from onepeace.train.recipe import Recipe

CLOSE, GRADIENTS_CLOSE = 1e-5, 5e-4
"""Relative, between the losses and between the gradients of each parameter, in float32."""

Losses = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Args:
        recipe: says the model, whose weights are random, the objective and the batches, whose items are made up.
        folder: where the recipe lies, beside the one whose run it starts from.
        dtypes: computed in by autocast; weights are float32.
        seconds: for each row of the table.
    """

    recipe: Recipe
    folder: Path | None
    dtypes: Sequence[torch.dtype]
    device: torch.device
    seconds: float


class Comparison:
    """Two ways to compute a step, by name, over one batch and one set of weights.

    Args:
        make_baseline: (model, batch, checkpointed) -> a function that gives the losses, by the names of the objective;
            None: see the module's docstring.
    """

    def __init__(self, pair: str, settings: Settings, make_baseline: Callable[..., Losses] | None = None):
        self.recipe, self.device = settings.recipe, settings.device
        self.config = planned_config(self.recipe, settings.folder)
        checkpointed = self.recipe.run.checkpoint_activations
        torch.manual_seed(0)
        self.model = build_module(self.config)
        with torch.no_grad():  # nothing may stay where a mistake would not show: gains, biases, tables
            for parameter in self.model.parameters():
                if parameter.ndim > 0:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
        if self.recipe.freeze:
            freeze(self.model, self.recipe.freeze)
        generator = torch.Generator().manual_seed(0)
        keys, count = self.recipe.data.modalities[pair], self.recipe.batch_size(pair)
        inputs = inputs_of_many_lengths(self.config, keys, count, generator)
        self.batch = pair_batch(self.recipe, self.model, inputs, generator)
        self.moved = self.batch.to(self.device)
        self.model.to(self.device)
        if checkpointed:
            self.model.set_grad_checkpointing()
        self.objectives = {
            name: self._objective(self.model, max_padding).to(self.device)
            for name, max_padding in (("ours", self.recipe.run.max_padding), ("baseline", 1.0))
        }
        self.ways: dict[str, Losses] = {name: partial(one, self.moved) for name, one in self.objectives.items()}
        if make_baseline is not None:
            self.ways["baseline"] = make_baseline(self.model, self.moved, checkpointed)

    def _objective(self, model: Any, max_padding: float) -> Objective:
        teachers, chunks = made_up_teachers(self.recipe, self.batch), self.recipe.run.grad_cache_chunks
        torch.manual_seed(0)  # of the terms' own parameters
        return Objective(model, self.recipe.objective, teachers, chunks, max_padding)

    def step(self, way: str, dtype: torch.dtype = torch.float32) -> Mapping[str, Tensor]:
        """Forward and backward; the losses."""
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            losses = self.ways[way]()
        losses["loss"].backward()
        return losses

    def gradients(self, way: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and gradients by name, in float32."""
        self.model.zero_grad()
        losses = {name: loss.detach() for name, loss in self.step(way).items() if name != "padding"}
        return losses, {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def check(self) -> None:
        """RuntimeError unless both have the same losses and gradients, where nothing is random."""
        self.model.eval()
        (ours, our_gradients), (base, gradients) = self.gradients("ours"), self.gradients("baseline")
        self.model.train()
        check_equal(ours, base, CLOSE, "the loss")
        check_equal(our_gradients, gradients, GRADIENTS_CLOSE, "the gradient of")

    def peak(self, way: str, dtype: torch.dtype) -> int:
        """Bytes alive at once beside weights, gradients and inputs."""
        self.model.zero_grad(set_to_none=False)  # so that gradients are there before, and do not count
        gradients = [parameter.grad for parameter in self.model.parameters()]
        with Live([*self.model.parameters(), gradients, self.moved.inputs]) as live:
            self.step(way, dtype)
        return live.peak

    def padding(self) -> dict[str, float]:
        """Share of padding in the tokens that pass the encoder's blocks."""
        with torch.no_grad():
            return {name: float(objective(self.moved)["padding"]) for name, objective in self.objectives.items()}

    @cached_property
    def flops(self) -> int:
        """Of a step, without padding and what is computed twice."""
        fakes = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("meta"):
            objective = self._objective(planned_model(self.recipe, self.config), max_padding=0.0)
        with as_on_a_gpu():
            return step_cost(fake_module(objective, fakes), self.batch, fakes, bfloat16=True).flops


def bench_train(
    settings: Settings, note: Callable[[str], None], make_baseline: Callable[..., Losses] | None = None
) -> dict[str, Any]:
    """Measure; returns {"machine": ..., "rows": [...]}, plain values for JSON. `note` hears what is going on."""
    rows = []
    for pair in settings.recipe.data.modalities:
        note(f"{pair}: do both steps compute the same? ...")
        comparison = Comparison(pair, settings, make_baseline)
        comparison.check()
        for dtype in settings.dtypes:
            note(f"{pair}, {dtype_name(dtype)} ...")
            rows.append({"pair": pair, **_measure(comparison, dtype, settings)})
    return {"machine": machine(settings.device), "seconds_per_row": settings.seconds, "rows": rows}


def _measure(comparison: Comparison, dtype: torch.dtype, settings: Settings) -> dict[str, Any]:
    peaks = {way: comparison.peak(way, dtype) for way in comparison.ways}

    def step(way: str) -> None:
        comparison.model.zero_grad()
        comparison.step(way, dtype)

    times = take_turns({way: partial(step, way) for way in comparison.ways}, settings.seconds, settings.device)
    return {
        "dtype": dtype_name(dtype),
        "batch": len(comparison.batch.keys),
        "checkpointed": settings.recipe.run.checkpoint_activations,
        "rounds": len(times["ours"]),
        "seconds": {name: spread(values) for name, values in times.items()},
        "baseline_over_ours": ratios(times, "baseline", "ours"),
        "peak_bytes": peaks,
        "memory_ours_over_baseline": peaks["ours"] / peaks["baseline"],
        "padding": comparison.padding(),
        "teraflops": spread([comparison.flops / 1e12 / seconds for seconds in times["ours"]]),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report for people, as Markdown: medians, quartiles in brackets."""
    head = ["pair", "dtype", "batch", "seconds a step", "TFLOP/s", "baseline / ours, time",
            "ours / baseline, memory", "padding"]  # fmt: skip
    rows = []
    for row in report["rows"]:
        ratio, seconds, peaks, padding = (
            row[name] for name in ("baseline_over_ours", "seconds", "peak_bytes", "padding")
        )
        rows.append([
            row["pair"] + (", checkpointed" if row["checkpointed"] else ""),
            row["dtype"],
            str(row["batch"]),
            f"{short(seconds['ours']['median'])}, baseline {short(seconds['baseline']['median'])}",
            short(row["teraflops"]["median"]),
            around(ratio),
            f"{row['memory_ours_over_baseline']:.2f} of {peaks['baseline'] / 1e9:.2f} GB",
            f"{padding['ours']:.0%}, baseline {padding['baseline']:.0%}",
        ])  # fmt: skip
    return markdown_report(head, rows, report["machine"])
