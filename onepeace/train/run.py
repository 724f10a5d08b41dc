"""State of a run, and the parts of a step: forward and backward pass, checkpoint, evaluation, export."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onepeace.config import read_yaml, to_yaml, write_config
from onepeace.data.reader import Cursor
from onepeace.device import peak_memory
from onepeace.generative.tasks import Task
from onepeace.hub import weights
from onepeace.hub.folder import TASKS
from onepeace.model import Trained
from onepeace.train import checkpoint, parallel
from onepeace.train.build import TOKENIZER, build, build_steps
from onepeace.train.checkpoint_files import read_header
from onepeace.train.log import Log
from onepeace.train.lora import trained_module
from onepeace.train.recipe import Recipe
from onepeace.train.resume import check_same
from onepeace.train.step import Stepper

log = logging.getLogger(__name__)

Evaluate = Callable[[Trained, dict[str, Any]], dict[str, float]]
"""(model, processors) -> named scores."""


class Run:
    """State of a run, from its last checkpoint if there is one.

    Args:
        recipe: the recipe.
        device: device of this process.

    Raises:
        UserError: data, recipe and checkpoint do not fit together.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
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
        self.optimizer = parts.optimizer
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
        state = checkpoint.State(self.objective, self.optimizer, self.average)
        self.checkpoints = checkpoint.Checkpoints(self.out, state, recipe.run.keep)
        self.start = 0
        """Number of steps already done."""
        self.cursors: dict[str, Cursor] = {}
        """This process's position in the data: the cursors of its lanes."""
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

    def _initial_average(self) -> dict[str, Tensor]:
        if not self.recipe.run.ema:
            return {}
        return {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def _write_recipe(self, trained_tasks: Mapping[str, Task]) -> None:
        """Write recipe.yaml and, for a generative model, tasks.yaml: tasks of the starting model and of the terms."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_config(self.recipe, self.out / "recipe.yaml")
        tasks: dict[str, Any] = {}
        start_folder = self.recipe.start_folder
        if start_folder is not None and (start_folder / TASKS).exists():
            tasks.update(read_yaml(start_folder / TASKS))
        tasks.update(trained_tasks)
        if tasks:
            write_config(tasks, self.out / TASKS)

    def figures(self) -> dict[str, float]:
        """Further numbers of the log: temperature and peak memory."""
        scale = self.model.logit_scale
        scale_of_cosines = {} if scale is None else {"logit_scale": scale.exp().item()}
        return {**scale_of_cosines, "peak_gigabytes": peak_memory(self.device) / 2**30}

    def save(self, step: int) -> None:
        """Begin to write the checkpoint of a step (`checkpoint.Checkpoints.save`); all processes must call it."""
        self.checkpoints.save(step, to_yaml(self.recipe), self.cursors)

    def trained_weights(self, everywhere: bool = False) -> Mapping[str, Tensor]:
        """Copy of the model's weights on this run's device, averaged if run.ema is set. All processes must call it;
        only the first gets the weights, or all of them."""
        whole = parallel.full_tensors({**self.model.state_dict(), **self.average}, everywhere)
        return {name: tensor.to(self.device, copy=True) for name, tensor in whole.items()}

    def evaluate(self, evaluate: Evaluate, journal: Log | None, step: int) -> None:
        """Evaluate in all processes and log the scores of a step, after its checkpoint."""
        module = trained_module(self.config, self.trained_weights(everywhere=True), self.recipe.lora)
        scores = evaluate(module, self.processors)
        if journal is not None:
            journal.write(step, {f"valid/{name}": value for name, value in scores.items()})

    def write_model(self) -> Path:
        """Write the folder of the trained model, unless it has just these weights, and, with lora, one of the adapters
        alone."""
        full, folder = self.trained_weights(), self.out / "model"
        if parallel.rank() == 0:
            module = trained_module(self.config, full, self.recipe.lora, self.out / "adapter")
            if not weights.holds(folder, module, self.config):
                self._export(folder, module)
        parallel.barrier()
        return folder

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
