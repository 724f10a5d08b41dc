"""Training loop: batches, losses, backward pass, optimizer step, log, evaluation, checkpoint; independent of the task.

A step is a function of the recipe, its number and the last checkpoint, so that a killed run resumes bit for bit.
"""

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from onepeace.data.report import DataReport
from onepeace.data.steps import Step, loader
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

SIGNALS = 3
"""Number of questions that all processes answer after each step."""


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
            log.warning("resuming from step %d of %s", run.start, run.out)
        with noticed_stop() as stop_requested:  # not earlier: there is nothing to save yet
            step = train_steps(run, evaluate, stop_at, stop_requested)
        return run.write_model() if step == recipe.schedule.steps else run.out


def train_steps(run: Run, evaluate: Evaluate | None, stop_at: int | None, stop_requested: Callable[[], bool]) -> int:
    """Take the remaining steps; returns the number of the last one."""
    last = min(run.recipe.schedule.steps, stop_at or run.recipe.schedule.steps)
    loop = Loop(run, evaluate, stop_requested)
    step = run.start
    # Closing ends the workers, which ignore SIGTERM.
    loading = loader(run.steps, run.start, last, run.recipe.run.workers)
    with closing(loading) as loaded, run.checkpoints:
        for step in range(run.start + 1, last + 1):
            with loop.averages.waiting():
                step_data = next(loaded)
            loop.take_step(step, step_data)
            is_stopping = loop.finish_step(step)
            if is_stopping:
                break
    loop.close()
    return step


class Loop:
    """Work around the steps of a run: its log, its evaluations, its checkpoints, and its end by a signal.

    Args:
        run: the run.
        evaluate: see `train`.
        stop_requested: whether this process was asked to stop.
    """

    def __init__(self, run: Run, evaluate: Evaluate | None, stop_requested: Callable[[], bool]) -> None:
        self.run = run
        self.recipe = run.recipe
        self.evaluate = evaluate
        self.stop_requested = stop_requested
        self.averages = Averages()
        self.journal = open_log(run.recipe, run.start) if parallel.rank() == 0 else None
        self.data_report = DataReport(run.steps)
        self.unusable = UnusableSteps(run.recipe)
        self.signals = parallel.AnyProcess()
        self.is_overdue = False
        """Whether it is time for a checkpoint, which waits for the next line of the log."""
        run.objective.train()

    def take_step(self, step: int, step_data: Step) -> None:
        """Train on the batches of a step, and add its numbers to those of the next line of the log."""
        batches = step_data.batches
        result = self.run.stepper(step, batches, self._learning_rate(step))
        self.run.cursors = step_data.cursors
        self.data_report.add(step_data)
        self.unusable.add(step, batches, result)
        num_items = sum(len(batch.keys) for batch in batches)
        self.averages.items += num_items * parallel.world_size()
        replaced = sum(len(batch.replaced) for batch in batches)
        self.averages.add_step(result.losses, grad_norm=result.grad_norm, replaced=float(replaced))

    def finish_step(self, step: int) -> bool:
        """Log, save and evaluate what is due after a step; returns whether the run must stop."""
        options = self.recipe.run
        is_last = step == self.recipe.schedule.steps
        is_logged = is_last or _is_due(options.log_every, step)
        evaluate = self.evaluate if is_last or _is_due(options.eval_every, step) else None
        is_stopping = self._ask_all_processes()
        if is_logged:
            self._write_log(step)
        # Checkpoints by time are saved only at steps that are logged, so that a resumed run logs the same lines.
        is_saved = _is_due(options.save_every, step) or (self.is_overdue and is_logged)
        if is_saved or evaluate is not None or is_last or is_stopping:
            self.run.save(step)
            self.is_overdue = False
        if evaluate is not None:
            self.run.evaluate(evaluate, self.journal, step)
            self.averages.restart_clock()
        return is_stopping and not is_last

    def close(self) -> None:
        """Close the log, after the last step."""
        self.signals.answers(SIGNALS)  # the last question is not left open
        if self.journal is not None:
            self.journal.close()

    def _learning_rate(self, step: int) -> float:
        return learning_rate(step - 1, self.recipe.optim.lr, self.recipe.schedule)

    def _ask_all_processes(self) -> bool:
        """Whether any process must stop; also learns whether a checkpoint is overdue.

        Raises:
            UserError: a checkpoint could not be written; in all processes.
        """
        checkpoints = self.run.checkpoints
        is_overdue_here = checkpoints.is_due(self.recipe.run.save_minutes)
        is_stopping, is_overdue, has_failed = self.signals.ask(
            self.stop_requested(), is_overdue_here, checkpoints.has_failed()
        )
        self.is_overdue = self.is_overdue or is_overdue
        if has_failed:
            checkpoints.wait()  # raises its error
        return is_stopping

    def _write_log(self, step: int) -> None:
        """Write the means of the steps since the last line; all processes must call it."""
        _exchange(self.data_report)
        means, speed = self.averages.take(left_out=self.unusable.check())
        line = {
            **means,
            "lr": self._learning_rate(step),
            **speed,
            **self.run.figures(),
        }
        if self.journal is not None:
            self.journal.write(step, line)


def _is_due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps happens at this one; 0 = never."""
    return bool(every) and step % every == 0


def _exchange(report: DataReport) -> None:
    """Exchange the reports of all processes; UserError if too many samples are broken, or if their orders differ."""
    numbers = parallel.gather(torch.from_numpy(report.numbers())[None])
    own_news = torch.tensor(list(report.news()), dtype=torch.uint8)
    news, _ = parallel.gather_ragged(own_news)
    report.merge(numbers.numpy(), bytes(news.tolist()))
