"""`onepeace bench train`: a step of pretraining against the plain one of plain_step.py, which computes the same.

Losses and gradients of both are compared in float32 before anything is measured. Memory is what is alive beside
weights, gradients and inputs at the peak of a step, counted by live.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from onepeace.bench.items import training_batch
from onepeace.bench.live import Live
from onepeace.bench.plain_step import SCALE, SMOOTHING, PlainStep
from onepeace.bench.report import dtype_name, lines_of, short, spread
from onepeace.bench.timing import machine, take_turns
from onepeace.config import SIZES, build
from onepeace.cost.flops import on_meta, training_cost
from onepeace.cost.plan import planned_model, planned_passes
from onepeace.hub.architectures import build_module
from onepeace.train.objective import Objective
from onepeace.train.optim import freeze
from onepeace.train.recipe import Recipe
from onepeace.train.start import make_config

CLOSE = 1e-5
"""Relative, between the losses of both in float32."""
GRADIENTS_CLOSE = 1e-4
"""Of all gradients together, between both in float32: the norm of their difference over their norm."""
DENOISING = {"scale": SCALE, "label_smoothing": SMOOTHING}
STAGES: dict[int, dict[str, Any]] = {
    1: {
        "data": {"train": [{"shards": "none.tar", "pair": ["image", "text"]}]},
        "mask": {"text": {"unimodal": 0.15, "joint": 0.4, "unit": "word"},
                 "image": {"unimodal": 0.75, "joint": 0.6875, "unit": "patch"}},
        "objective": {"contrastive": {"weight": 1.0}, "denoising/text": {"weight": 0.5, **DENOISING},
                      "denoising/image": {"weight": 1.0, **DENOISING},
                      "denoising/text+image": {"weight": 0.5, **DENOISING}},
    },
    2: {
        "data": {"train": [{"shards": "none.tar", "pair": ["audio", "text"]}]},
        "mask": {"text": {"joint": 0.4, "unit": "word"},
                 "audio": {"unimodal": 0.55, "joint": 0.45, "unit": "span"}},
        "freeze": {"except": ["adapters.audio.*", "norms.audio.*", "blocks.*.ffn.audio.*", "heads.audio.*",
                              "logit_scale", "decoder.*"]},
        "objective": {"contrastive": {"weight": 1.0},
                      "denoising/audio": {"weight": 1.0, "teacher": "joint", **DENOISING},
                      "denoising/text+audio": {"weight": 0.5, **DENOISING}},
    },
}  # fmt: skip
"""As in the recipes base_image_text.yaml and base_audio_text.yaml."""
SMALL_STEMS: dict[str, Any] = {
    "image": {"stem": "hmlp"},
    "audio": {"stem": "wave", "convs": [[32, 10, 5], *[[32, 3, 2]] * 4, *[[32, 2, 2]] * 2]},
}
"""The released stems, where the named size has others or would take longer in them than in its blocks."""
DEVICE_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40": 181, "A10": 125, "V100": 112, "T4": 65}
"""Of matrix products in half precision without sparsity, as their makers state."""


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Args:
        size: a named size; weights are random.
        stages: of 1 (pictures and text) and 2 (sound and text).
        dtypes: computed in by autocast; weights are float32.
        batch: pairs in a step.
        checkpointed: both keep of each block its input only.
        seconds: for each row of the table.
    """

    size: str
    stages: Sequence[int]
    dtypes: Sequence[torch.dtype]
    device: torch.device
    batch: int
    checkpointed: bool
    seconds: float


class Contest:
    """Both steps over one batch and one set of weights."""

    def __init__(self, stage: int, settings: Settings):
        self.other = STAGES[stage]["data"]["train"][0]["pair"][0]
        self.recipe = make_recipe(stage, settings.size, settings.batch)
        config = make_config(self.recipe)
        torch.manual_seed(0)
        self.model = build_module(config).train()
        with torch.no_grad():  # nothing may stay where a mistake would not show: gains, biases, tables
            for parameter in self.model.parameters():
                if parameter.ndim > 0:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
        if self.recipe.freeze:
            freeze(self.model, self.recipe.freeze)
        batch = training_batch(config, self.model, self.other, self.recipe.mask, settings.batch)
        self.batch = batch.to(settings.device)
        self.model.to(settings.device)
        self.objective = Objective(self.model, self.recipe.objective, {})
        self.plain = PlainStep(self.model, self.batch, settings.checkpointed)
        if settings.checkpointed:
            # The plain step calls no block, it only reads its weights.
            self.model.set_grad_checkpointing()
        self.device = settings.device

    def losses(self, ours: bool) -> dict[str, Tensor]:
        """Losses by name."""
        return self.objective(self.batch) if ours else self.plain.losses(self.other)

    def step(self, ours: bool, dtype: torch.dtype) -> None:
        """Forward and backward."""
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            loss = self.losses(ours)["loss"]
        loss.backward()

    def gradients(self, ours: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and gradients by name, in float32."""
        self.model.zero_grad()
        found = self.losses(ours)
        found["loss"].backward()
        losses = {name: loss.detach() for name, loss in found.items() if name != "padding"}
        return losses, {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}

    def check(self) -> None:
        """RuntimeError unless both have the same losses and gradients."""
        (ours, our_gradients), (plain, gradients) = self.gradients(True), self.gradients(False)
        if ours.keys() != plain.keys() or our_gradients.keys() != gradients.keys():
            names = sorted((ours.keys() ^ plain.keys()) | (our_gradients.keys() ^ gradients.keys()))
            raise RuntimeError(f"the two steps do not compute the same: only one of them has {', '.join(names)}")
        for name, loss in plain.items():
            if not float((ours[name] - loss).abs()) <= CLOSE * float(loss.abs()):
                raise RuntimeError(f"the two steps differ: {name} is {float(ours[name])} and {float(loss)}")
        apart = norm(our_gradients[name] - gradient for name, gradient in gradients.items())
        if not apart <= GRADIENTS_CLOSE * norm(gradients.values()):
            raise RuntimeError(f"the gradients of the two steps are {apart} apart, of {norm(gradients.values())}")

    def peak(self, ours: bool, dtype: torch.dtype) -> int:
        """Bytes alive at once beside weights, gradients and inputs."""
        self.model.zero_grad(set_to_none=False)  # so that gradients are there before, and do not count
        gradients = [parameter.grad for parameter in self.model.parameters()]
        with Live([*self.model.parameters(), gradients, self.batch]) as live:
            self.step(ours, dtype)
        return live.peak

    def flops(self) -> int:
        """Of a step, without losses and what is computed twice; each item is as long as it is."""
        planned = planned_model(self.recipe, make_config(self.recipe))
        take = {key: self.model.adapters[key].take for key in ("text", self.other)}
        total = 0
        for part in self.batch.to(torch.device("cpu")).split(len(self.batch.keys), take):
            item = {key: on_meta(part.inputs[key]) for key in take}
            passes = planned_passes(self.recipe, planned, item, ["text", self.other])
            total += training_cost(planned, item, passes).total
        return total


def norm(tensors: Any) -> float:
    return float(sum((tensor.double().square().sum() for tensor in tensors), start=torch.zeros(()))) ** 0.5


def make_recipe(stage: int, size: str, batch: int) -> Recipe:
    """The stage's recipe, without drop path: that is chance, and the two would draw it differently."""
    other = STAGES[stage]["data"]["train"][0]["pair"][0]
    small = size == "tiny"
    grid = SIZES[size]["adapters"]["image"]["grid"]
    content = {
        "model": {"size": size, "modalities": ["text", other], "drop_path": 0.0,
                  "adapters": {other: SMALL_STEMS[other]} if small else {},
                  "decoder": {"options": {"image": {"grid": grid}} if other == "image" else {}}},
        "processors": {"text": {"max_tokens": 70}, "image": {"size": 16 * grid}, "audio": {"max_seconds": 15.0}},
        "schedule": {"steps": 1},
        "run": {"out": "none", "batch_size": batch},
        **STAGES[stage],
    }  # fmt: skip
    return build(Recipe, content, "recipe")


def bench_train(settings: Settings, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure; returns {"machine": ..., "rows": [...]}, plain values for JSON. `note` hears what is going on."""
    rows = []
    for stage in settings.stages:
        note(f"stage {stage}: do both steps compute the same? ...")
        contest = Contest(stage, settings)
        contest.check()
        for dtype in settings.dtypes:
            note(f"stage {stage}, {dtype_name(dtype)} ...")
            rows.append({"stage": stage, **_measure(contest, dtype, settings)})
    return {"machine": machine(settings.device), "seconds_per_row": settings.seconds, "rows": rows}


def _measure(contest: Contest, dtype: torch.dtype, settings: Settings) -> dict[str, Any]:
    peaks = {name: contest.peak(name == "ours", dtype) for name in ("ours", "plain")}

    def step(ours: bool) -> None:
        contest.model.zero_grad()
        contest.step(ours, dtype)

    calls = {"ours": partial(step, True), "plain": partial(step, False)}
    times = take_turns(calls, settings.seconds, settings.device)
    row = {
        "model": f"{settings.size}, random weights",
        "pair": f"{contest.other}+text",
        "dtype": dtype_name(dtype),
        "batch": settings.batch,
        "checkpointed": settings.checkpointed,
        "rounds": len(times["ours"]),
        "seconds": {name: spread(values) for name, values in times.items()},
        "plain_over_ours": spread([plain / ours for plain, ours in zip(times["plain"], times["ours"], strict=True)]),
        "peak_bytes": peaks,
        "memory_ours_over_plain": peaks["ours"] / peaks["plain"],
        "padding": _padding(contest),
        "model_flops_utilisation": None,
    }
    if settings.device.type == "cuda" and (rate := _device_flops(settings.device)) is not None:
        flops = contest.flops()
        row["model_flops_utilisation"] = spread([flops / seconds / rate for seconds in times["ours"]])
    return row


def _padding(contest: Contest) -> dict[str, float]:
    """Share of the tokens that both compute in the encoder's blocks."""
    with torch.no_grad():
        ours, whole = (float(Objective(contest.model, contest.recipe.objective, {}, max_padding=share)(contest.batch)
                             ["padding"]) for share in (contest.objective.max_padding, 1.0))  # fmt: skip
    return {"ours": ours, "plain": whole}


def _device_flops(device: torch.device) -> float | None:
    """Half precision products a second, of devices that are known."""
    name = torch.cuda.get_device_name(device)
    return next((1e12 * rate for known, rate in DEVICE_TFLOPS.items() if known in name), None)


def table(report: Mapping[str, Any]) -> str:
    """The report for people, as Markdown: medians, quartiles in brackets."""
    head = ["model", "stage", "dtype", "batch", "seconds a step", "plain / ours, time", "ours / plain, memory",
            "padding"]  # fmt: skip
    rows = []
    for row in report["rows"]:
        ratio, seconds, peaks = row["plain_over_ours"], row["seconds"], row["peak_bytes"]
        rows.append([
            row["model"] + (", checkpointed" if row["checkpointed"] else ""),
            f"{row['stage']}, {row['pair']}",
            row["dtype"],
            str(row["batch"]),
            f"{short(seconds['ours']['median'])}, plain {short(seconds['plain']['median'])}",
            f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})",
            f"{row['memory_ours_over_plain']:.2f} of {peaks['plain'] / 1e9:.2f} GB",
            f"{row['padding']['ours']:.0%}, plain {row['padding']['plain']:.0%}",
        ])  # fmt: skip
        if (used := row["model_flops_utilisation"]) is not None:
            rows[-1][4] += f", MFU {used['median']:.2f}"
    return lines_of(head, rows, report["machine"])
