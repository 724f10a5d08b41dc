"""A run: its state, and the loop of steps, log, checkpoints and evaluations; independent of the task.

A step is a function of the recipe, its number and the last checkpoint, so that a killed run resumes bit for bit.
"""

import logging
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from onepeace.config import read_yaml, to_yaml, write_config
from onepeace.data.reader import Cursor
from onepeace.data.steps import Account, Step, loader
from onepeace.device import choose_device, memory_remedy, peak_memory
from onepeace.errors import UserError
from onepeace.files.atomic import locked, write_atomic
from onepeace.hub import weights
from onepeace.hub.folder import TASKS, TERMS_FILE
from onepeace.model import Trained
from onepeace.train import checkpoint, parallel
from onepeace.train.checkpoint import read_header, remove_unfinished
from onepeace.train.logging import Averages, open_log
from onepeace.train.lora import trained_module
from onepeace.train.optim import rates
from onepeace.train.recipe import Recipe, check_same
from onepeace.train.schedule import learning_rate
from onepeace.train.setup import TOKENIZER, build, build_steps
from onepeace.train.speed import Utilisation, traced
from onepeace.train.step import Stepper, UnusableSteps

log = logging.getLogger(__name__)

SIGNALS = 3
"""Number of questions that all processes answer after each step."""

Evaluate = Callable[[Trained, dict[str, Any]], dict[str, float]]
"""(model, processors) -> named scores."""


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
        trainer = Trainer(recipe, device, evaluate)
        if trainer.start and stop_at is None:
            log.warning("resuming from step %d of %s", trainer.start, out)
        with noticed_stop() as stop_requested:  # not earlier: there is nothing to save yet
            step = trainer.take_steps(stop_at, stop_requested)
        return trainer.write_model() if step == recipe.schedule.steps else out


class Trainer:
    """A run in this process, from its last checkpoint if there is one.

    Args:
        recipe: the recipe.
        device: device of this process.
        evaluate: see `train`.

    Attributes:
        start: number of steps already done.
        cursors: this process's position in the data: the cursors of its lanes, and what the run has lost.
        steps: the data of this process.

    Raises:
        UserError: data, recipe and checkpoint do not fit together.
    """

    def __init__(self, recipe: Recipe, device: torch.device, evaluate: Evaluate | None = None) -> None:
        self.recipe = recipe
        self.device = device
        self.evaluate = evaluate
        self.out = Path(recipe.run.out)
        saved = checkpoint.newest(self.out)
        if saved is not None:  # before features that take hours are computed
            header = read_header(saved)
            check_same(header.recipe, recipe, self.out, header.step)
        parts = build(recipe, device, is_resumed=saved is not None)
        self.config = parts.config
        self.processors = parts.processors
        self.objective = parts.objective
        """The model and the terms, with all trainable parameters."""
        self.model = parts.objective.model
        self.average = self._initial_average()
        """Averaged weights by parameter name; empty without run.ema."""
        self.stepper = Stepper(
            recipe=recipe,
            objective=parts.objective,
            optimizer=parts.optimizer,
            average=self.average,
            device=device,
            bfloat16=parts.use_bfloat16,
        )
        if not self.objective.sharded:
            self.stepper.parallelized = parallel.replicate(self.objective)
        state = checkpoint.State(parts.objective, parts.optimizer, self.average)
        self.checkpoints = checkpoint.Checkpoints(self.out, state, recipe.run.keep)
        self.start = 0
        self.cursors: dict[str, Cursor] = {}
        if saved is not None:
            header = self.checkpoints.restore(saved)
            self.start = header.step
            self.cursors = dict(header.cursors)
        if parallel.rank() == 0:
            self._write_recipe(parts.tasks)
        parallel.barrier()  # an evaluation reads the tasks
        self.steps = build_steps(
            recipe=recipe,
            sources=parts.sources,
            processors=parts.processors,
            config=parts.config,
            cursors=self.cursors,
            features=parts.features,
        )
        for source in parts.sources:
            source.forget()
        if self.start < recipe.schedule.steps:
            self.steps.open(self.start)
        self.averages = Averages()
        self.utilisation = Utilisation(device)
        self.journal = open_log(recipe, self.start) if parallel.rank() == 0 else None
        self.account = Account(self.steps, self.cursors)
        self.unusable = UnusableSteps(recipe.run.out)
        self.signals = parallel.AnyProcess()
        self.is_overdue = False
        """Whether it is time for a checkpoint, which waits for the next line of the log."""

    def _initial_average(self) -> dict[str, Tensor]:
        if not self.recipe.run.ema:
            return {}
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def _write_recipe(self, trained_tasks: Mapping[str, Any]) -> None:
        """Write recipe.yaml and, for a generative model, tasks.yaml: tasks of the starting model and of the terms."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_config(self.recipe, self.out / "recipe.yaml")
        tasks: dict[str, Any] = {}
        start_folder = self.recipe.fetch_start_folder()
        if start_folder is not None and (start_folder / TASKS).exists():
            tasks.update(read_yaml(start_folder / TASKS))
        tasks.update(trained_tasks)
        if tasks:
            write_config(tasks, self.out / TASKS)

    def take_steps(self, stop_at: int | None = None, stop_requested: Callable[[], bool] = lambda: False) -> int:
        """Take the remaining steps; returns the number of the last one.

        Args:
            stop_at: see `train`.
            stop_requested: whether this process was asked to stop.
        """
        last = min(self.recipe.schedule.steps, stop_at or self.recipe.schedule.steps)
        self.objective.train()
        step = self.start
        # Closing ends the workers, which ignore SIGTERM.
        loading = loader(self.steps, self.start, last, self.recipe.run.workers)
        with closing(loading) as loaded, self.checkpoints, traced(self.recipe.run, self.start) as end_step:
            for step in range(self.start + 1, last + 1):
                with self.averages.waiting():
                    step_data = next(loaded)
                self.take_step(step, step_data)
                is_stopping = self.finish_step(step, stop_requested())
                end_step()
                if is_stopping:
                    break
        self.signals.answers(SIGNALS)  # the last question is not left open
        if self.journal is not None:
            self.journal.close()
        return step

    def take_step(self, step: int, step_data: Step) -> None:
        """Train on the batches of a step, and add its numbers to those of the next line of the log."""
        batches = step_data.batches
        tokens: Counter[str] = Counter()
        for batch in batches:
            tokens.update({key: int(lengths.sum()) for key, lengths in batch.lengths.items()})
        remedy = "raise run.grad_cache_chunks, set run.recompute to blocks, or lower run.batch_size"
        with memory_remedy(f"no memory for step {step}; {remedy}"):
            if self.recipe.run.compile and self.utilisation.is_wanted:
                with self.utilisation.counting(tokens.total()):
                    self.stepper.rehearse(step, batches)
            with self.utilisation.counting(tokens.total()):
                result = self.stepper(step, batches, self._learning_rate(step))
        self.account.add(step_data)
        self.cursors = {**step_data.cursors, **self.account.state()}
        self.unusable.add(step, batches, result)
        num_items = sum(len(batch.keys) for batch in batches)
        self.averages.items += num_items * parallel.world_size()
        self.averages.tokens.update(tokens)
        replaced = sum(lost.shard is None for lost in step_data.lost)
        self.averages.add_step(result.losses, grad_norm=result.grad_norm, replaced=float(replaced))

    def finish_step(self, step: int, stop_requested: bool) -> bool:
        """Log, save and evaluate what is due after a step; returns whether the run must stop."""
        options = self.recipe.run
        is_last = step == self.recipe.schedule.steps
        is_logged = is_last or _is_due(options.log_every, step)
        evaluate = self.evaluate if is_last or _is_due(options.eval_every, step) else None
        is_stopping = self._ask_all_processes(stop_requested)
        if is_logged:
            self._write_log(step)
        # Checkpoints by time are saved only at steps that are logged, so that a resumed run logs the same lines.
        is_saved = _is_due(options.save_every, step) or (self.is_overdue and is_logged)
        if is_saved or evaluate is not None or is_last or is_stopping:
            self.checkpoints.save(step, to_yaml(self.recipe), self.cursors)
            self.is_overdue = False
        if evaluate is not None:
            self._evaluate(evaluate, step)
        return is_stopping and not is_last

    def _learning_rate(self, step: int) -> float:
        return learning_rate(step - 1, self.recipe.optim.lr, self.recipe.schedule)

    def _ask_all_processes(self, stop_requested: bool) -> bool:
        """Whether any process must stop; also learns whether a checkpoint is overdue.

        Raises:
            UserError: a checkpoint could not be written; in all processes.
        """
        is_overdue_here = self.checkpoints.is_due(self.recipe.run.save_minutes)
        is_stopping, is_overdue, has_failed = self.signals.ask(
            stop_requested, is_overdue_here, self.checkpoints.has_failed()
        )
        self.is_overdue = self.is_overdue or is_overdue
        if has_failed:
            self.checkpoints.wait()  # raises its error
        return is_stopping

    def _write_log(self, step: int) -> None:
        """Write the means of the steps since the last line; all processes must call it."""
        told = parallel.gather_objects(self.account.own())
        self.account.merge(told)
        self.cursors.update(self.account.state())
        means, speed = self.averages.take(left_out=self.unusable.check())
        tokens_per_second = sum(speed[name] for name in speed if name.startswith("tokens_per_second/"))
        speed |= self.utilisation.shares(tokens_per_second / parallel.world_size())
        scale = self.model.logit_scale
        temperature = {} if scale is None else {"logit_scale": scale.exp().item()}
        line = {
            **means,
            "lost_shards": self.account.lost_shards,
            "lr": self._learning_rate(step),
            **{f"lr/{pattern}": rate for pattern, rate in rates(self.stepper.optimizer).items()},
            **speed,
            **temperature,
            "peak_gigabytes": peak_memory(self.device) / 2**30,
        }
        if self.journal is not None:
            self.journal.write(step, line)

    def _evaluate(self, evaluate: Evaluate, step: int) -> None:
        """Evaluate in all processes and log the scores of a step, after its checkpoint."""
        module = trained_module(self.config, self.trained_weights(everywhere=True), self.recipe.lora)
        scores = evaluate(module, self.processors)
        if self.journal is not None:
            self.journal.write(step, {f"valid/{name}": value for name, value in scores.items()})
        self.averages.restart_clock()

    def trained_weights(self, everywhere: bool = False) -> Mapping[str, Tensor]:
        """Copy of the model's weights on this run's device, averaged if run.ema is set. All processes must call it;
        only the first gets the weights, or all of them."""
        whole = parallel.full_tensors({**self.model.state_dict(), **self.average}, everywhere)
        return {name: tensor.to(self.device, copy=True) for name, tensor in whole.items()}

    def write_model(self) -> Path:
        """Write the folder of the trained model, and, with lora, one of the adapters alone."""
        full = self.trained_weights()
        folder = self.out / "model"
        if parallel.rank() == 0:
            self._export(folder, trained_module(self.config, full, self.recipe.lora, self.out / "adapter"))
        self._write_terms(folder)
        parallel.barrier()
        return folder

    def _write_terms(self, folder: Path) -> None:
        """Write the parameters of the terms, such as a bias of a loss, beside the model; `start_terms` reads them."""
        tensors = parallel.full_tensors(dict(self.objective.terms.named_parameters()))
        if tensors and parallel.rank() == 0:
            with write_atomic(folder / TERMS_FILE) as temporary:
                save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary)

    def _export(self, folder: Path, module: Trained) -> None:
        steps = self.recipe.schedule.steps
        head = f"# {self.out.name}\n\nTrained with onepeace for {steps} steps. The recipe:"
        card = f"{head}\n\n```yaml\n{to_yaml(self.recipe)}```\n"
        tokenizer = self.out / TOKENIZER
        tasks = self.out / TASKS
        weights.save(
            folder,
            module,
            self.config,
            tokenizer=tokenizer if tokenizer.exists() else None,
            tasks=tasks if tasks.exists() else None,
            card=card,
        )


def _is_due(every: int, step: int) -> bool:
    """Whether something that happens every so many steps happens at this one; 0 = never."""
    return bool(every) and step % every == 0


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Context in which no other run can use a folder (`onepeace.files.atomic`); the first process locks it for all."""
    with ExitStack() as stack:
        problem = ""
        if parallel.rank() == 0:
            try:
                stack.enter_context(locked(folder))
            except UserError as error:
                problem = str(error)
        problem = parallel.gather_objects(problem)[0]
        if problem:
            raise UserError(problem)
        yield


@contextmanager
def noticed_stop() -> Iterator[Callable[[], bool]]:
    """Context in which SIGTERM and the first Ctrl-C are deferred; yields a function that tells whether there was one.

    Raises:
        KeyboardInterrupt: at the end of the block after Ctrl-C; at once if it is pressed again.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def note(number: int, _: Any) -> None:
        if signal.SIGINT in came:
            raise KeyboardInterrupt
        came.append(number)
        if number == signal.SIGINT:
            log.warning("saving after this step (Ctrl-C again: stop at once)")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in came:
        raise KeyboardInterrupt
