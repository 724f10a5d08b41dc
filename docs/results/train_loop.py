"""Items per second of `onepeace train` beside a loop written by hand: the same model, batches, optimizer and clipping.

python docs/results/train_loop.py RECIPE [a.b=value ...]

Both take turns over the same steps, built before the clock starts, so that only the loops differ. Printed are the
medians of the seconds of a step and their ratio.
"""

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from onepeace.device import choose_device
from onepeace.train.logging import Averages
from onepeace.train.recipe import read_recipe
from onepeace.train.step import UnusableSteps
from onepeace.train.trainer import Trainer

STEPS = 6
ROUNDS = 4


def main() -> None:
    path, *overrides = sys.argv[1:]
    with TemporaryDirectory() as out:
        recipe = read_recipe(path, [*overrides, f"run.out={Path(out) / 'run'}"])
        run = Trainer(recipe, choose_device())
        run.objective.train()
        steps = [run.steps[number] for number in range(STEPS)]
        seconds: dict[str, list[float]] = {"onepeace": [], "by hand": []}
        for _ in range(ROUNDS):
            seconds["onepeace"] += take_our_steps(run, steps)
            seconds["by hand"] += take_plain_steps(run, steps)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{medians['onepeace']:.4f} s a step, by hand {medians['by hand']:.4f} s")
    print(f"items per second, by hand = 1: {medians['by hand'] / medians['onepeace']:.3f}")


def take_our_steps(run: Trainer, steps: list) -> list[float]:
    """Seconds of each step as the training loop takes it, with the log's averages every tenth step."""
    averages = Averages()
    unusable = UnusableSteps(run.recipe.run.out)
    seconds = []
    for number, step in enumerate(steps, start=1):
        start = time.perf_counter()
        result = run.stepper(number, step.batches, learning_rate=1e-4)
        unusable.add(number, step.batches, result)
        averages.add_step(result.losses, grad_norm=result.grad_norm)
        if number % 10 == 0:
            averages.take(left_out=unusable.check())
        seconds.append(time.perf_counter() - start)
    return seconds


def take_plain_steps(run: Trainer, steps: list) -> list[float]:
    """Seconds of each step of a loop of ten lines."""
    parameters = [parameter for parameter in run.objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    seconds = []
    for step in steps:
        start = time.perf_counter()
        for batch in step.batches:
            with torch.autocast(run.device.type, torch.bfloat16, enabled=run.stepper.bfloat16):
                loss = run.objective(batch.to(run.device))["loss"]
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 3.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # as such loops print it
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
