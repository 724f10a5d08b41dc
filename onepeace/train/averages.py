"""Means of the numbers of a run's steps, and its speed, between two lines of the log."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from onepeace.train.parallel import mean


class Averages:
    """Means of named numbers and the speed since the last call of `take`.

    Tensors are read in `take` only, so that steps do not wait for the GPU.
    """

    def __init__(self) -> None:
        self._steps: list[dict[str, Tensor]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Restart the measurement of the speed."""
        self.items = 0
        """Number of items trained on."""
        self._waited = 0.0
        self._since = time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context that measures how long the loop waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def add_step(self, losses: Sequence[Mapping[str, Tensor]], **values: Tensor | float) -> None:
        """Add the losses of a step's batches and other numbers; names may differ from step to step. "loss" is the sum
        over the batches, as in the gradient; a term of several batches is averaged."""
        by_name: dict[str, list[Tensor]] = {}
        for batch_losses in losses:
            for name, value in batch_losses.items():
                by_name.setdefault(name, []).append(value.detach())
        numbers = {"loss": torch.stack(by_name.pop("loss")).sum()}
        for name, tensors in by_name.items():
            numbers[name] = torch.stack(tensors).mean()
        for name, number in values.items():
            numbers[name] = torch.as_tensor(number, dtype=torch.float32)
        self._steps.append(numbers)

    def take(self, left_out: Sequence[bool] = ()) -> tuple[dict[str, float], dict[str, float]]:
        """Means by name, also over processes, and the speed: items per second, share of time spent waiting for data,
        seconds. Both are reset.

        Args:
            left_out: for each step, whether it does not count.
        """
        values: dict[str, list[Tensor]] = {}
        for number, step in enumerate(self._steps):
            if not (left_out and left_out[number]):
                for name, value in step.items():
                    values.setdefault(name, []).append(value)
        means = {}
        if values:
            over_steps = [torch.stack(tensors).double().mean().cpu() for tensors in values.values()]
            over_processes = mean(torch.stack(over_steps))
            means = dict(zip(values, over_processes.tolist(), strict=True))
        spent = time.perf_counter() - self._since
        speed = {
            "items_per_second": round(self.items / spent, 1),
            "data_wait": round(self._waited / spent, 3),
            "seconds": round(spent, 2),
        }
        self._steps.clear()
        self.restart_clock()
        return means, speed
