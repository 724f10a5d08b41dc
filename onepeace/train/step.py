"""A training step: forward and backward passes, clipping, and the optimizer's update.

Nothing here reads a value from the device. A gradient that is not finite is found by the device itself, which then
skips the update; `UnusableSteps` learns of it when the log is written.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from onepeace.data.batch import Batch
from onepeace.errors import UserError
from onepeace.train import parallel
from onepeace.train.objective import Objective
from onepeace.train.optim import update_average
from onepeace.train.recipe import Recipe

log = logging.getLogger(__name__)

NAMED_SAMPLES = 8
"""Maximum number of samples that a message names."""
MAX_UNUSABLE = 3
"""Consecutive steps with a gradient that is not finite, which are skipped and logged; one more stops the run."""


class StepResult(NamedTuple):
    """Numbers of a step, on the device."""

    losses: list[dict[str, Tensor]]
    """Losses by name of each batch."""
    grad_norm: Tensor
    """Norm of the gradient before clipping; if it is not finite, nothing was updated."""


@dataclass
class Stepper:
    """Takes the steps of a run."""

    recipe: Recipe
    objective: Objective
    """The model and the terms, after `parallel.parallelize`."""
    optimizer: torch.optim.Optimizer
    average: Mapping[str, Tensor]
    """Averaged weights by parameter name, updated in place; empty = none."""
    device: torch.device
    """Device of this process."""
    bfloat16: bool
    """Whether forward passes run under autocast to bfloat16."""

    def __post_init__(self) -> None:
        self.parallelized: nn.Module = self.objective
        """The objective, wrapped for all processes if it is not sharded."""

    def __call__(self, step: int, batches: Sequence[Batch], learning_rate: float) -> StepResult:
        """Take step number ``step``, from 1 on, over this process's part of its batches."""
        self.objective.at_step(step)
        # Seeding by step and rank replaces a saved random state.
        torch.manual_seed(self.recipe.seed + 1_000_003 * step + parallel.rank())
        for settings in self.optimizer.param_groups:
            settings["lr"] = learning_rate * settings["lr_scale"]
        losses, grad_norm = self.forward_backward(batches)
        self._update(grad_norm)
        return StepResult(losses, grad_norm)

    def rehearse(self, step: int, batches: Sequence[Batch]) -> None:
        """Compute a step without the compiler and without an update, after which everything is as before."""
        statistics = [(buffer, buffer.clone()) for buffer in self.objective.buffers()]
        self.objective.at_step(step)
        with torch.compiler.set_stance("force_eager"):
            self.forward_backward(batches)
        for buffer, before in statistics:
            buffer.copy_(before)

    def forward_backward(self, batches: Sequence[Batch]) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Losses of each batch of a step, and the norm of their gradient before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for number, batch in enumerate(batches, start=1):
            with parallel.no_sync(self.parallelized, last=number == len(batches)):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                    batch_losses = self.parallelized(batch.to(self.device))
                batch_losses["loss"].backward()
            parallel.free_gathered(self.parallelized)
            losses.append(batch_losses)
        return losses, parallel.clip_gradients(self.objective, self.recipe.optim.grad_clip)

    def _update(self, grad_norm: Tensor) -> None:
        """Update the weights and their average, unless the gradient is not finite."""
        is_finite = grad_norm.isfinite()
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            # The device leaves the update out itself (torch's fused optimizers, as under a GradScaler).
            self.optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
        elif bool(is_finite):  # other optimizers have to wait for the gradient
            self.optimizer.step()
        self.objective.model.clamp_logit_scale()
        update_average(self.average, self.objective.model, self.recipe.run.ema or 0.0)


class UnusableSteps:
    """Steps since the last log whose gradient was not finite.

    Args:
        out: folder of the run, for messages.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        self.in_a_row = 0
        """Number of consecutive steps up to the last one that were left out."""
        self._steps: list[int] = []
        self._keys: list[list[list[str]]] = []
        self._numbers: list[Tensor] = []

    def add(self, step: int, batches: Sequence[Batch], result: StepResult) -> None:
        """Remember the samples and numbers of a step for a message."""
        self._steps.append(step)
        self._keys.append([batch.keys for batch in batches])
        numbers = [result.grad_norm.detach().float()]
        for batch_losses in result.losses:
            numbers.append(batch_losses["loss"].detach().float())
        self._numbers.append(torch.stack(numbers))

    def check(self) -> list[bool]:
        """For each step since the last call, whether it was left out, which is logged; this waits for the device.

        Raises:
            UserError: too many steps in a row were left out.
        """
        unusable = []
        rows = torch.stack(self._numbers).cpu() if self._numbers else torch.zeros(0, 1)
        for step, keys, numbers in zip(self._steps, self._keys, rows, strict=True):
            unusable.append(not bool(numbers[0].isfinite()))
            self.in_a_row = self.in_a_row + 1 if unusable[-1] else 0
            if unusable[-1]:
                self._report(step, keys, numbers)
        self._steps = []
        self._keys = []
        self._numbers = []
        return unusable

    def _report(self, step: int, keys_of_batches: list[list[str]], numbers: Tensor) -> None:
        """Log a step that was left out, with the samples of the batches whose loss is not finite, or else of all."""
        norm = numbers[0].item()
        losses = numbers[1:]
        suspects = []
        for batch_keys, loss in zip(keys_of_batches, losses, strict=True):
            if not loss.isfinite():
                suspects.append(batch_keys)
        keys = list(chain.from_iterable(suspects or keys_of_batches))
        named = ", ".join(keys[:NAMED_SAMPLES])
        if len(keys) > NAMED_SAMPLES:
            named += f" and {len(keys) - NAMED_SAMPLES} more"
        if self.in_a_row > MAX_UNUSABLE:
            raise UserError(
                f"the gradient of step {step} is {norm}, as in the {MAX_UNUSABLE} steps before it; lower optim.lr, set "
                f"run.precision=float32, or check the samples {named}",
                where=self.out,
            )
        log.warning("the gradient of step %d is %s, so the step is skipped; its samples: %s", step, norm, named)
