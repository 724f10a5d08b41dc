"""Training loop: batches, losses, backward pass, optimizer step, log, evaluation, checkpoint; independent of the task.

A step is a function of the recipe, its number and the last checkpoint, so that a killed run resumes bit for bit.
"""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from onepeace.data.steps import loader
from onepeace.device import choose_device
from onepeace.train import parallel
from onepeace.train.log import Averages, Log
from onepeace.train.optim import learning_rate, update_average
from onepeace.train.recipe import Recipe
from onepeace.train.run import Evaluate, Run
from onepeace.train.stop import noticed_stop

log = logging.getLogger(__name__)


def train(recipe: Recipe, evaluate: Evaluate | None = None, stop_at: int | None = None) -> Path:
    """Train according to a recipe, from the last checkpoint if there is one; under torchrun, as one of its processes.

    Args:
        recipe: the recipe.
        evaluate: (model, processors) -> named scores, called every ``run.eval_every`` steps and at the end.
        stop_at: last step, as if the run were interrupted after it: no extra checkpoint is saved.

    Returns:
        The folder of the trained model (config.yaml, model.safetensors, tokenizer.json, MODEL_CARD.md), or of the run
        if SIGTERM stopped it after a checkpoint.

    Raises:
        UserError: data, recipe and checkpoint do not fit together; gradients stay infinite.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    with parallel.group(choose_device()) as device:
        run = Run(recipe, device)
        if run.start and stop_at is None:
            log.warning("going on from step %d of %s", run.start, run.out)
        with noticed_stop() as stop_requested:  # not earlier: there is nothing to save yet
            step = train_steps(run, evaluate, stop_at, stop_requested)
        return run.write_model() if step == recipe.schedule.steps else run.out


def train_steps(run: Run, evaluate: Evaluate | None, stop_at: int | None, stop_requested: Callable[[], bool]) -> int:
    """Take the remaining steps; returns the number of the last one."""
    recipe, options, total = run.recipe, run.recipe.run, run.recipe.schedule.steps
    journal = Log(run.out, run.start, total, options.tensorboard) if parallel.rank() == 0 else None

    def due(every: int, step: int) -> bool:
        return bool(every) and step % every == 0

    def evaluated(step: int) -> bool:
        return evaluate is not None and (step == total or due(options.eval_every, step))

    averages, bad_steps, step = Averages(), 0, run.start
    last_save, last = time.monotonic(), min(total, stop_at or total)
    run.objective.train()
    # Closing ends the workers, which ignore SIGTERM.
    with closing(loader(run.steps, run.start, last, options.workers)) as batches:
        for step in range(run.start + 1, last + 1):
            with averages.waiting():
                group, cursors = next(batches)
            # Seeding by step and rank replaces a saved random state.
            torch.manual_seed(recipe.seed + 1_000_003 * step + parallel.rank())
            rate = learning_rate(step - 1, recipe.optim.lr, recipe.schedule)
            for settings in run.optimizer.param_groups:
                settings["lr"] = rate * settings["lr_scale"]
            run.objective.at_step(step)
            losses, norm = run.forward_backward(group)
            averages.items += sum(len(batch.keys) for batch in group) * parallel.world_size()
            run.cursors.update(cursors)
            if norm.isfinite():
                bad_steps = 0
                run.optimizer.step()
                run.model.clamp_logit_scale()
                update_average(run.average, run.model, options.ema or 0.0)
                replaced = sum(len(batch.replaced) for batch in group)
                averages.add_step(losses, grad_norm=norm, replaced=torch.tensor(float(replaced), device=run.device))
            else:
                bad_steps += 1
                run.optimizer.zero_grad(set_to_none=True)
                run.report_bad_step(step, norm, group, losses, bad_steps)

            # Checkpoints by time are saved only at steps that are logged, so that a resumed run logs the same lines.
            overdue = 0 < 60 * options.save_minutes < time.monotonic() - last_save and due(options.log_every, step)
            stopping, overdue = parallel.any_of(stop_requested(), overdue)
            if due(options.log_every, step) or step == total:
                means, speed = averages.take()
                line = {**means, "lr": rate, **speed, **run.figures()}
                if journal:
                    journal.write(step, line)
            if due(options.save_every, step) or overdue or evaluated(step) or step == total or stopping:
                run.save(step)
                last_save = time.monotonic()
            if evaluated(step):
                run.evaluate(evaluate, journal, step)
                averages.restart_clock()
            if stopping and step < total:
                break
    if journal:
        journal.close()
    return step
