"""Training loop: batches, losses, backward pass, optimizer step, log, evaluation, checkpoint; independent of the task.

A step is a function of the recipe, its number and the last checkpoint, so that a killed run resumes bit for bit.
"""

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from onepeace.data.report import DataReport
from onepeace.data.steps import loader
from onepeace.device import choose_device
from onepeace.train import parallel
from onepeace.train.averages import Averages
from onepeace.train.checkpoint_files import remove_unfinished
from onepeace.train.folder import only_run_in
from onepeace.train.log import open_log
from onepeace.train.optim import learning_rate
from onepeace.train.recipe import Recipe
from onepeace.train.run import Evaluate, Run
from onepeace.train.step import UnusableSteps
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
    out = Path(recipe.run.out)
    with parallel.group(choose_device()) as device, only_run_in(out):
        if parallel.rank() == 0:
            remove_unfinished(out)
        run = Run(recipe, device)
        if run.start and stop_at is None:
            log.warning("going on from step %d of %s", run.start, run.out)
        with noticed_stop() as stop_requested:  # not earlier: there is nothing to save yet
            step = train_steps(run, evaluate, stop_at, stop_requested)
        return run.write_model() if step == recipe.schedule.steps else run.out


def train_steps(run: Run, evaluate: Evaluate | None, stop_at: int | None, stop_requested: Callable[[], bool]) -> int:
    """Take the remaining steps; returns the number of the last one."""
    options = run.recipe.run
    total = run.recipe.schedule.steps
    journal = open_log(run.recipe, run.start) if parallel.rank() == 0 else None
    averages = Averages()
    report = DataReport(run.steps)
    unusable = UnusableSteps(run.recipe)
    processes = parallel.AnyProcess()
    is_overdue = False
    step = run.start
    last = min(total, stop_at or total)
    run.objective.train()
    # Closing ends the workers, which ignore SIGTERM.
    with closing(loader(run.steps, run.start, last, options.workers)) as loaded, run.checkpoints:
        for step in range(run.start + 1, last + 1):
            with averages.waiting():
                step_data = next(loaded)
            batches = step_data.batches
            report.add(step_data)
            rate = learning_rate(step - 1, run.recipe.optim.lr, run.recipe.schedule)
            result = run.stepper(step, batches, rate)
            run.cursors = step_data.cursors
            unusable.add(step, batches, result)
            averages.items += sum(len(batch.keys) for batch in batches) * parallel.world_size()
            replaced = sum(len(batch.replaced) for batch in batches)
            averages.add_step(result.losses, grad_norm=result.grad_norm, replaced=float(replaced))

            is_logged = _is_due(options.log_every, step) or step == total
            is_evaluated = evaluate is not None and (step == total or _is_due(options.eval_every, step))
            stopping, overdue_somewhere, failed = processes.ask(
                stop_requested(), run.checkpoints.is_due(options.save_minutes), run.checkpoints.has_failed()
            )
            is_overdue = is_overdue or overdue_somewhere
            if failed:
                run.checkpoints.wait()  # raises its error in all processes
            if is_logged:
                _exchange(report)
                means, speed = averages.take(left_out=unusable.check())
                line = {**means, "lr": rate, **speed, **run.figures()}
                if journal:
                    journal.write(step, line)
            # Checkpoints by time are saved only at steps that are logged, so that a resumed run logs the same lines.
            is_saved = _is_due(options.save_every, step) or (is_overdue and is_logged)
            if is_saved or is_evaluated or step == total or stopping:
                run.save(step)
                is_overdue = False
            if is_evaluated and evaluate is not None:
                run.evaluate(evaluate, journal, step)
                averages.restart_clock()
            if stopping and step < total:
                break
    processes.answers(3)  # the last question is not left open
    if journal:
        journal.close()
    return step


def _is_due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps happens at this one; 0 = never."""
    return bool(every) and step % every == 0


def _exchange(report: DataReport) -> None:
    """Exchange the reports of all processes; UserError if too many samples are broken, or if their orders differ."""
    numbers = parallel.gather(torch.from_numpy(report.numbers())[None])
    own_news = torch.tensor(list(report.news()), dtype=torch.uint8)
    news, _ = parallel.gather_ragged(own_news)
    report.merge(numbers.numpy(), bytes(news.tolist()))
