"""State of a run, and the parts of a step: forward and backward pass, checkpoint, evaluation, export."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onepeace.compiling import compile_blocks
from onepeace.config import Config, read_yaml, to_yaml, write_config
from onepeace.data.batch import Batch
from onepeace.data.builder import BatchBuilder
from onepeace.data.frozen_cache import FrozenCache
from onepeace.data.reader import Cursor, Source, open_sources
from onepeace.data.steps import Steps
from onepeace.device import bfloat16_is_fast, peak_memory
from onepeace.errors import UserError
from onepeace.generative.tasks import FILE as TASKS
from onepeace.generative.tasks import Task
from onepeace.hub import weights
from onepeace.hub.architectures import build_module
from onepeace.model import Trained
from onepeace.train import checkpoint, parallel
from onepeace.train.folder import model_folder
from onepeace.train.labels import label_heads
from onepeace.train.log import Log
from onepeace.train.lora import add_lora_and_freeze, trained_module
from onepeace.train.objective import Objective
from onepeace.train.optim import make_optimizer
from onepeace.train.recipe import Recipe, check_same
from onepeace.train.start import make_config, make_model, make_processors, make_tokenizer
from onepeace.train.stem_features import make_stem_features
from onepeace.train.training_data import TrainingData, prepare_terms

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
        self.recipe, self.device, self.out = recipe, device, Path(recipe.run.out)
        if (saved := checkpoint.newest(self.out)) is not None:  # before features that take hours are computed
            check_same(saved.recipe, recipe, self.out)
        main, config, sources = parallel.rank() == 0, make_config(recipe), open_sources(recipe.data)
        self.config = config = label_heads(config, recipe, sources)
        if "text" in config.model.adapters and main:
            make_tokenizer(recipe, sources, self.out / "tokenizer.json")
        parallel.barrier()
        self.processors = make_processors(config, self.out)
        sharded = parallel.world_size() > 1 and recipe.run.parallel == "fsdp"
        self.model = make_model(recipe, config, empty=sharded and not main)
        # Building a teacher draws random numbers, reading its cache does not; the initial weights must be the same.
        with torch.random.fork_rng(devices=[]):
            data = TrainingData(recipe, sources, self.processors)
            prepared = parallel.first_alone(lambda: prepare_terms(data))
        chunks, max_padding = recipe.run.grad_cache_chunks, recipe.run.max_padding
        self.objective = Objective(self.model, recipe.terms, prepared, chunks, max_padding, sharded)
        """The model and the terms, with all trainable parameters."""
        add_lora_and_freeze(self.model, recipe)
        bfloat16 = {"float32": False, "bfloat16": True}.get(recipe.run.precision, bfloat16_is_fast(device))
        self.use_bfloat16 = bfloat16
        """Whether forward passes run under autocast to bfloat16."""
        features = make_stem_features(recipe, sources, self.processors, self.model, device, bfloat16)
        self.model.set_grad_checkpointing(recipe.run.checkpoint_activations)
        if recipe.run.compile:
            compile_blocks(self.model)
        self.parallelized = parallel.parallelize(self.objective, self.model.blocks, recipe.run.parallel, device)
        """The objective, wrapped for all processes."""
        self.optimizer = make_optimizer(self.model, recipe.optim)
        if own := list(self.objective.terms.named_parameters()):
            self.optimizer.add_param_group({"params": own, "lr_scale": 1.0, "weight_decay": 0.0})
        self.average = {
            name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad and recipe.run.ema
        }
        """Averaged weights by parameter name; empty without run.ema."""
        self.start, self.cursors = 0, dict[str, Cursor]()
        """Number of steps already done, and this process's position in the data."""
        if saved is not None:
            self.start, self.cursors = saved.step, saved.extra.get("cursors", {})
            self.restore(saved)
        elif main:
            self.out.mkdir(parents=True, exist_ok=True)
            write_config(recipe, self.out / "recipe.yaml")
        self.steps = make_steps(recipe, sources, self.processors, config, self.cursors, features)
        if main:
            self.keep_tasks(data.tasks)
        parallel.barrier()
        for source in sources:
            source.forget()
        if self.start < recipe.schedule.steps:
            self.steps.open(self.start)

    def keep_tasks(self, trained: Mapping[str, Task]) -> None:
        """Write the tasks of the terms and of the starting model to the run's tasks.yaml, for a generative model."""
        source = self.recipe.start.source
        before = None if source is None else model_folder(source) / TASKS
        known = read_yaml(before) if before is not None and before.exists() else {}
        if known or trained:
            write_config({**known, **trained}, self.out / TASKS)

    def forward_backward(self, group: list[Batch]) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Losses of each batch of a step, and the norm of their gradient before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, batch in enumerate(group):
            with parallel.no_sync(self.parallelized, last=i == len(group) - 1):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16):
                    found = self.parallelized(batch.to(self.device))
                found["loss"].backward()
            losses.append(found)
        return losses, parallel.clip(self.objective, self.recipe.optim.grad_clip)

    def figures(self) -> dict[str, float]:
        """Further numbers of the log: temperature and peak memory."""
        scale = self.model.logit_scale
        known = {} if scale is None else {"logit_scale": scale.exp().item()}
        return {**known, "peak_gigabytes": peak_memory(self.device) / 2**30}

    def save(self, step: int) -> None:
        """Write the checkpoint of a step; all processes call it and wait until it is complete.

        Raises:
            UserError: the disk is full or not writable; older checkpoints are untouched.
        """
        cursors = {name: cursor for part in parallel.gather_objects(self.cursors) for name, cursor in part.items()}
        found = self.optimizer.state_dict()
        state = checkpoint.Checkpoint(
            step=step,
            model=parallel.full_tensors(self.objective.state_dict()),
            optimizer={**found, "state": {i: parallel.full_tensors(values) for i, values in found["state"].items()}},
            ema=parallel.full_tensors(self.average),
            recipe=to_yaml(self.recipe),
            extra={"cursors": cursors},
        )
        if parallel.rank() == 0:
            try:
                checkpoint.prune(checkpoint.save(self.out, state), self.recipe.run.keep)
            except OSError as error:
                raise UserError(
                    f"{self.out}: the checkpoint of step {step} cannot be written ({error}); make room, and the same "
                    "command goes on from the one before"
                ) from error
        parallel.barrier()

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Load a checkpoint written by any number of processes; each process takes its shard of each tensor."""
        own = self.objective.state_dict()
        model = {name: parallel.shard_like(tensor, own.get(name)) for name, tensor in saved.model.items()}
        self.objective.load_state_dict(model)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        # States are numbered like the parameters; their step counts are not sharded.
        state = {
            i: {name: parallel.shard_like(value, parameters[i]) for name, value in values.items()}
            for i, values in saved.optimizer["state"].items()
        }
        self.optimizer.load_state_dict({**saved.optimizer, "state": state})
        for name, tensor in self.average.items():
            tensor.copy_(parallel.shard_like(saved.ema[name], tensor))

    def trained_weights(self) -> Mapping[str, Tensor]:
        """Copy of the model's weights on this run's device, averaged if run.ema is set. All processes must call it;
        only the first gets the weights."""
        whole = parallel.full_tensors({**self.model.state_dict(), **self.average})
        return {name: tensor.to(self.device, copy=True) for name, tensor in whole.items()}

    def evaluate(self, evaluate: Evaluate | None, journal: Log | None, step: int) -> None:
        """Evaluate and log the scores of a step, after its checkpoint."""
        full = self.trained_weights()
        if journal and evaluate:
            scores = evaluate(trained_module(self.config, full, self.recipe.lora), self.processors)
            journal.write(step, {f"valid/{name}": value for name, value in scores.items()})
        parallel.barrier()

    def report_bad_step(
        self, step: int, norm: Tensor, group: list[Batch], losses: list[dict[str, Tensor]], count: int
    ) -> None:
        """Log a step whose gradient is not finite; UserError after too many in a row."""
        limit = self.recipe.run.max_bad_steps
        bad = [batch for batch, found in zip(group, losses, strict=True) if not found["loss"].isfinite()] or group
        keys = [key for batch in bad for key in batch.keys]
        named = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
        if count > limit:
            raise UserError(
                f"{self.out}: the gradient of step {step} is {norm.item()}, as in the {limit} steps before; lower "
                f"optim.lr, or run.precision=float32, or look at the samples {named}"
            )
        log.warning("the gradient of step %d is %s: left out; its samples: %s", step, norm.item(), named)

    def write_model(self) -> Path:
        """Write the folder of the trained model and, with lora, one of the adapters alone."""
        full, folder = self.trained_weights(), self.out / "model"
        if parallel.rank() == 0:
            steps = self.recipe.schedule.steps
            head = f"# {self.out.name}\n\nTrained with onepeace for {steps} steps. The recipe:"
            card = f"{head}\n\n```yaml\n{to_yaml(self.recipe)}```\n"
            module = trained_module(self.config, full, self.recipe.lora, self.out / "adapter")
            found = {"tokenizer": self.out / "tokenizer.json", "tasks": self.out / TASKS}
            files: Any = {name: path for name, path in found.items() if path.exists()}
            weights.save(folder, module, self.config, **files, card=card)
        parallel.barrier()
        return folder


def make_steps(
    recipe: Recipe,
    sources: list[Source],
    processors: Mapping[str, Any],
    config: Config,
    cursors: Mapping[str, Cursor],
    features: Mapping[str, FrozenCache] | None = None,
) -> Steps:
    """Steps of this process, from ``cursors`` on."""
    # On the meta device: spawned workers get these functions pickled, without the model's weights.
    with torch.device("meta"):
        num_tokens = {key: adapter.token_lengths for key, adapter in build_module(config).adapters.items()}
    builder = BatchBuilder(recipe.data, processors, num_tokens, recipe.mask if recipe.uses_masks else {}, features)
    sizes = {name: recipe.batch_size(name) for name in recipe.data.modalities}
    return Steps(builder, sources, recipe.seed, sizes, cursors, parallel.rank(), parallel.world_size())
