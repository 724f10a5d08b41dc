"""``bench train``: training steps of a recipe, compared with a baseline of the same losses.

The baseline is the same objective without groups of similar length: every item is padded to the longest of the batch.
Losses and gradients of both are compared in float32 before anything is measured. Memory is the peak of a step without
weights, gradients and inputs.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.comparison import check_equal, compare, compared, short
from benchmarks.items import SAMPLE_RATE, largest_items
from onepeace.config import Config
from onepeace.data.batch import Batch
from onepeace.hub.architectures import build_encoder
from onepeace.layers.recompute import set_recompute
from onepeace.plan.plan import planned_config, planned_model, planned_objective, with_masks
from onepeace.plan.step import Meter, as_on_a_gpu
from onepeace.special_ids import EOS, PAD
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

CLOSE = 1e-5
"""Maximum relative difference of the losses in float32."""
GRADIENTS_CLOSE = 5e-4
"""Maximum relative difference of the gradient of each parameter in float32."""
CAPTION_TOKENS = {4: 2, 5: 5, 6: 8, 7: 6, 8: 5, 10: 3, 11: 3, 12: 2, 13: 3}
"""Numbers of captions in data/samples/captions.csv by their tokens, with eos."""
SHORTEST_CLIP = 1.0
LONGEST_CLIP = 15.0
"""Seconds of the shortest and of the longest sound."""


class StepPair:
    """Two candidates for a step, "ours" and "baseline", with one batch and one set of weights."""

    def __init__(self, source: str, recipe: Recipe, device: torch.device):
        self.recipe = recipe
        self.device = device
        self.config = planned_config(recipe)
        torch.manual_seed(0)
        self.model = build_encoder(self.config)
        with torch.no_grad():  # gains, biases and tables that are 0 or 1 would hide a mistake
            for parameter in self.model.parameters():
                if parameter.ndim > 0:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
        add_lora_and_freeze(self.model, recipe)
        generator = torch.Generator().manual_seed(0)
        modalities = recipe.data.modalities[source]
        inputs = inputs_of_many_lengths(self.config, modalities, recipe.batch_size(source), generator)
        keys = [f"item{number}" for number in range(recipe.batch_size(source))]
        batch = Batch(inputs, keys, keys, [[key] for key in keys], source=source).measured(self.model.adapters)
        self.batch = with_masks(recipe, batch).split(recipe.run.grad_cache_chunks, self.model.adapters)
        self.moved = self.batch.to(device)
        self.model.to(device)
        set_recompute(self.model, recipe.run.recompute)
        self.candidates = {
            "ours": self._objective(recipe.run.max_padding).to(device),
            "baseline": self._objective(max_padding=1.0).to(device),
        }

    def _objective(self, max_padding: float) -> Objective:
        torch.manual_seed(0)  # for parameters of the terms
        recipe = replace(self.recipe, run=replace(self.recipe.run, max_padding=max_padding))
        return planned_objective(recipe, self.model, [self.batch])

    def run(self, candidate: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Losses of a forward pass, after its backward pass."""
        self.model.zero_grad(set_to_none=False)
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            losses = dict(self.candidates[candidate](self.moved))
        losses.pop("padding")
        losses["loss"].backward()
        return losses

    def check(self) -> None:
        """RuntimeError unless losses and gradients of both are equal in evaluation mode, in float32."""
        self.model.eval()
        losses, gradients = {}, {}
        for candidate in self.candidates:
            self.model.zero_grad()
            losses[candidate] = {name: loss.detach() for name, loss in self.run(candidate).items()}
            gradients[candidate] = self._gradients()
        self.model.train()
        check_equal(losses["ours"], losses["baseline"], CLOSE, "the loss")
        check_equal(gradients["ours"], gradients["baseline"], GRADIENTS_CLOSE, "the gradient of")

    def _gradients(self) -> dict[str, Tensor]:
        """Copies of the gradients by the name of the parameter."""
        gradients = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                gradients[name] = parameter.grad.clone()
        return gradients

    def measure(self, dtype: torch.dtype, seconds: float) -> dict[str, Any]:
        """Measured values of a row; call it after `check`, which allocates the gradients."""
        parameters = list(self.model.parameters())
        gradients = [parameter.grad for parameter in parameters]
        calls = {name: partial(self.run, name, dtype) for name in self.candidates}
        row = compare(calls, [*parameters, gradients, self.moved.inputs], seconds, self.device)
        with torch.no_grad():
            padding = {name: float(objective(self.moved)["padding"]) for name, objective in self.candidates.items()}
        return {**row, "padding": padding}

    def flops(self) -> int:
        """FLOPs of a step, without padding and recomputation."""
        run = replace(self.recipe.run, max_padding=0.0, recompute="none")
        recipe = replace(self.recipe, run=run)
        with torch.device("meta"):
            objective = planned_objective(recipe, planned_model(recipe, self.config), [self.batch])
        with as_on_a_gpu():
            meter = Meter(shards=1)
            meter.take_passes(objective.to_empty(device="cpu"), self.batch, bfloat16=False)
        return meter.flops


def bench_train(
    recipe: Recipe, dtypes: Sequence[torch.dtype], device: torch.device, seconds: float
) -> Iterator[dict[str, Any]]:
    """Rows of the table, one per source and autocast dtype, with random weights and synthetic items."""
    for source in recipe.data.modalities:
        log.info("%s: comparing losses and gradients ...", source)
        steps = StepPair(source, recipe, device)
        steps.check()
        teraflop = steps.flops() / 1e12
        for dtype in dtypes:
            log.info("%s, %s ...", source, dtype)
            measured = steps.measure(dtype, seconds)
            yield {
                "source": source,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": len(steps.batch.keys),
                "recompute": recipe.run.recompute,
                "teraflops": teraflop / measured["seconds"]["ours"]["median"],
                **measured,
            }


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Columns of the table."""
    return {
        "source": f"{row['source']}, recompute: {row['recompute']}",
        "dtype": row["dtype"],
        "batch": str(row["batch"]),
        **compared(row),
        "TFLOP/s": short(row["teraflops"]),
        "padding": ", baseline ".join(f"{row['padding'][name]:.0%}" for name in ("ours", "baseline")),
    }


def inputs_of_many_lengths(
    config: Config, modalities: Sequence[str], count: int, generator: torch.Generator
) -> dict[str, dict[str, Tensor]]:
    """Items of several modalities: texts of lengths drawn from `CAPTION_TOKENS`, sounds of any length between
    `SHORTEST_CLIP` and `LONGEST_CLIP`."""
    inputs = largest_items(config, modalities, count)
    for batch in inputs.values():
        if "ids" in batch:
            _shorten_texts(batch, generator)
        if "waveform" in batch:
            _shorten_sounds(batch, generator)
    return inputs


def _shorten_texts(batch: dict[str, Tensor], generator: torch.Generator) -> None:
    """Replace texts of equal length by shorter ones, and add their lengths."""
    choices = torch.tensor(list(CAPTION_TOKENS))
    counts = torch.tensor(list(CAPTION_TOKENS.values()))
    all_lengths = choices.repeat_interleave(counts)
    lengths = all_lengths[torch.randint(len(all_lengths), (len(batch["ids"]),), generator=generator)]
    ids = batch["ids"][:, : int(lengths.max())]
    positions = torch.arange(ids.shape[1])
    ids = ids.masked_fill(positions == lengths[:, None] - 1, EOS)
    batch["ids"] = ids.masked_fill(positions >= lengths[:, None], PAD)
    batch["lengths"] = lengths


def _shorten_sounds(batch: dict[str, Tensor], generator: torch.Generator) -> None:
    """Replace sounds of equal length by shorter ones, and add their lengths."""
    count, samples = batch["waveform"].shape
    longest = min(LONGEST_CLIP, samples / SAMPLE_RATE)
    seconds = SHORTEST_CLIP + (longest - SHORTEST_CLIP) * torch.rand(count, generator=generator)
    lengths = (seconds * SAMPLE_RATE).long()
    positions = torch.arange(int(lengths.max()))
    batch["waveform"] = batch["waveform"][:, : len(positions)] * (positions < lengths[:, None])
    batch["lengths"] = lengths
