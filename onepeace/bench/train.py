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

from onepeace.bench.comparison import check_equal, compare, compared, short
from onepeace.config import Config
from onepeace.data.synthetic import SAMPLE_RATE, largest_items, synthetic_batch
from onepeace.hub.architectures import build_encoder
from onepeace.layers.recompute import set_recompute
from onepeace.plan.dry_run import measure_step
from onepeace.plan.objective import synthetic_objective
from onepeace.plan.plan import planned_config, planned_model
from onepeace.special_ids import EOS, PAD
from onepeace.train.lora import add_lora_and_freeze
from onepeace.train.objective import Objective
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

CLOSE, GRADIENTS_CLOSE = 1e-5, 5e-4
"""Maximum relative difference of the losses, and of the gradient of each parameter, in float32."""
CAPTION_TOKENS = {4: 2, 5: 5, 6: 8, 7: 6, 8: 5, 10: 3, 11: 3, 12: 2, 13: 3}
"""Numbers of captions in data/samples/captions.csv by their tokens, with eos."""
CLIP_SECONDS = (1.0, 15.0)
"""Length of the shortest and the longest sound."""


class StepPair:
    """Two candidates for a step, "ours" and "baseline", with one batch and one set of weights."""

    def __init__(self, pair: str, recipe: Recipe, device: torch.device):
        self.recipe, self.device, self.config = recipe, device, planned_config(recipe)
        torch.manual_seed(0)
        self.model = build_encoder(self.config)
        with torch.no_grad():  # gains, biases and tables that are 0 or 1 would hide a mistake
            for parameter in self.model.parameters():
                if parameter.ndim > 0:
                    parameter.add_(0.02 * torch.randn(parameter.shape))
        add_lora_and_freeze(self.model, recipe)
        generator = torch.Generator().manual_seed(0)
        keys, count = recipe.data.modalities[pair], recipe.batch_size(pair)
        inputs = inputs_of_many_lengths(self.config, keys, count, generator)
        batch = replace(synthetic_batch(recipe.data, recipe.mask, self.model.adapters, inputs), source=pair)
        self.batch = batch.split(recipe.run.grad_cache_chunks, self.model.adapters)
        self.moved = self.batch.to(device)
        self.model.to(device)
        set_recompute(self.model, recipe.run.recompute)
        padding = {"ours": recipe.run.max_padding, "baseline": 1.0}
        self.candidates = {name: self._objective(most).to(device) for name, most in padding.items()}

    def _objective(self, max_padding: float) -> Objective:
        torch.manual_seed(0)  # for parameters of the terms
        recipe = replace(self.recipe, run=replace(self.recipe.run, max_padding=max_padding))
        return synthetic_objective(recipe, self.model, self.batch.keys)

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
            gradients[candidate] = {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
        self.model.train()
        check_equal(losses["ours"], losses["baseline"], CLOSE, "the loss")
        check_equal(gradients["ours"], gradients["baseline"], GRADIENTS_CLOSE, "the gradient of")

    def measure(self, dtype: torch.dtype, seconds: float) -> dict[str, Any]:
        """Measured values of a row; call it after `check`, which allocates the gradients."""
        known = [*self.model.parameters(), [parameter.grad for parameter in self.model.parameters()], self.moved.inputs]
        found = compare({name: partial(self.run, name, dtype) for name in self.candidates}, known, seconds, self.device)
        with torch.no_grad():
            padding = {name: float(objective(self.moved)["padding"]) for name, objective in self.candidates.items()}
        return {**found, "padding": padding}

    def flops(self) -> int:
        """FLOPs of a step, without padding and recomputation."""
        run = replace(self.recipe.run, max_padding=0.0, recompute="none")
        recipe = replace(self.recipe, run=run)
        with torch.device("meta"):
            objective = synthetic_objective(recipe, planned_model(recipe, self.config), self.batch.keys)
        return measure_step(recipe, objective.train(), [self.batch], per_machine=1).flops.total()


def bench_train(
    recipe: Recipe, dtypes: Sequence[torch.dtype], device: torch.device, seconds: float
) -> Iterator[dict[str, Any]]:
    """Rows of the table, one per source and autocast dtype, with random weights and synthetic items."""
    for pair in recipe.data.modalities:
        log.info("%s: comparing losses and gradients ...", pair)
        steps = StepPair(pair, recipe, device)
        steps.check()
        teraflop = steps.flops() / 1e12
        for dtype in dtypes:
            log.info("%s, %s ...", pair, dtype)
            about = {"pair": pair, "dtype": str(dtype).removeprefix("torch."), "batch": len(steps.batch.keys)}
            about["recompute"] = recipe.run.recompute
            found = steps.measure(dtype, seconds)
            slow, median, fast = (teraflop / found["seconds"]["ours"][name] for name in ("high", "median", "low"))
            yield {**about, **found, "teraflops": {"low": slow, "median": median, "high": fast}}


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """Columns of the table."""
    return {
        "pair": row["pair"] + (", blocks recomputed" if row["recompute"] == "blocks" else ""),
        "dtype": row["dtype"],
        "batch": str(row["batch"]),
        **compared(row),
        "TFLOP/s": short(row["teraflops"]["median"]),
        "padding": ", baseline ".join(f"{row['padding'][name]:.0%}" for name in ("ours", "baseline")),
    }


def inputs_of_many_lengths(
    config: Config, pair: Sequence[str], count: int, generator: torch.Generator
) -> dict[str, dict[str, Tensor]]:
    """Items of a pair: texts of lengths drawn from `CAPTION_TOKENS`, sounds of lengths uniform in `CLIP_SECONDS`."""
    inputs = largest_items(config, pair, count)
    for batch in inputs.values():
        if "ids" in batch:
            lengths = torch.tensor([tokens for tokens, times in CAPTION_TOKENS.items() for _ in range(times)])
            tokens = lengths[torch.randint(len(lengths), (count,), generator=generator)]
            ids = batch["ids"][:, : int(tokens.max())]
            places = torch.arange(ids.shape[1])
            ids = ids.masked_fill(places == tokens[:, None] - 1, EOS)
            batch["ids"], batch["lengths"] = ids.masked_fill(places >= tokens[:, None], PAD), tokens
        if "waveform" in batch:
            shortest, longest = CLIP_SECONDS[0], min(CLIP_SECONDS[1], batch["waveform"].shape[1] / SAMPLE_RATE)
            seconds = shortest + (longest - shortest) * torch.rand(count, generator=generator)
            batch["lengths"] = (seconds * SAMPLE_RATE).long()
            samples = torch.arange(int(batch["lengths"].max()))
            batch["waveform"] = batch["waveform"][:, : len(samples)] * (samples < batch["lengths"][:, None])
    return inputs
