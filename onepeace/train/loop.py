"""The training loop: next batches, objective, backward, clip, step, log, save. It knows steps, not tasks.

Everything a step does is a function of the recipe, the step's number and the state in the last checkpoint, so a run
that was killed goes on as if it had not been. Read recipe.py for what can be set.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onepeace.config import write_config
from onepeace.data.batches import Batch, to_device
from onepeace.data.steps import loader
from onepeace.device import bfloat16_is_fast, choose_device, peak_memory
from onepeace.errors import UserError
from onepeace.hub import weights
from onepeace.model import OnePeace
from onepeace.train import build, checkpoint, parallel
from onepeace.train.log import Averages, Log, describe_run
from onepeace.train.objective import Objective
from onepeace.train.optim import freeze, learning_rate, make_optimizer, set_learning_rate
from onepeace.train.recipe import Recipe, check_same, to_yaml
from onepeace.train.state import State

log = logging.getLogger(__name__)

Evaluate = Callable[[OnePeace, dict[str, Any]], dict[str, float]]


def train(recipe: Recipe, evaluate: Evaluate | None = None, stop_at: int | None = None) -> Path:
    """Run a recipe to its end, from its last checkpoint if there is one; one of the processes if torchrun started it.

    Args:
        recipe: what to do.
        evaluate: (model, processors) -> named scores, called every ``run.eval_every`` steps and at the end.
        stop_at: end after this step as if interrupted: nothing is saved that was not due.

    Returns:
        The folder of the trained model (config.yaml, model.safetensors, tokenizer.json, MODEL_CARD.md), or of the run
        if it was stopped. SIGTERM stops it after a checkpoint.

    Raises:
        UserError: data, recipe or checkpoint that do not fit together; gradients that stay infinite.
    """
    with parallel.group(choose_device()) as device, _sigterm() as asked_to_stop, ExitStack() as stack:
        return _train(recipe, evaluate, stop_at, device, asked_to_stop, stack)


def _train(
    recipe: Recipe,
    evaluate: Evaluate | None,
    stop_at: int | None,
    device: torch.device,
    asked_to_stop: Callable[[], bool],
    stack: ExitStack,
) -> Path:
    out, run, main = Path(recipe.run.out), recipe.run, parallel.rank() == 0
    config = build.make_config(recipe)
    data = build.Data(recipe)
    if "text" in config.model.adapters and main:
        build.make_tokenizer(recipe, data.captions, out / "tokenizer.json")
    parallel.barrier()
    processors = build.make_processors(config, out)
    sharded = parallel.world_size() > 1 and run.parallel == "fsdp"
    model = build.make_model(recipe, config, empty=sharded and not main)
    teachers = parallel.first_alone(lambda: build.make_teachers(recipe, data.sources, processors))
    objective = Objective(model, recipe.objective, teachers, run.grad_cache_chunks, run.max_padding, sharded)
    if recipe.freeze:
        freeze(model, recipe.freeze)
    if run.checkpoint_activations:
        model.set_grad_checkpointing()
    if run.compile:
        for block in model.blocks:
            block.compile()
    use_bfloat16 = {"float32": False, "bfloat16": True}.get(run.precision, bfloat16_is_fast(device))
    spread = parallel.parallelize(objective, model.blocks, run.parallel, device)
    optimizer = make_optimizer(model, recipe.optim)
    if len(objective.teacher_heads):
        heads = list(objective.teacher_heads.named_parameters())
        optimizer.add_param_group({"params": heads, "lr_scale": 1.0, "weight_decay": 0.0})
    average = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad and run.ema}

    state = State(objective, optimizer, average, sharded)
    resolved, start, places = to_yaml(recipe), 0, None
    total = recipe.schedule.steps
    if (saved := checkpoint.newest(out)) is not None:
        check_same(saved.recipe, resolved, out)
        state.restore(saved)
        start, places = saved.step, saved.extra.get("places")
        log.warning("going on from step %d of %s", start, out)
    elif main:
        out.mkdir(parents=True, exist_ok=True)
        write_config(recipe, out / "recipe.yaml")
    if main:
        describe_run(out)
    parallel.barrier()
    lengths = {key: adapter.token_lengths for key, adapter in model.adapters.items()}
    steps, places = data.steps(processors, lengths, places, start)

    def save(step: int) -> None:
        extra = {"places": places.everywhere(parallel.gather_objects(places.lanes))} if places else {}
        state.save(out, step, resolved, extra, run.keep)

    def measured(step: int) -> bool:
        return evaluate is not None and (step == total or bool(run.eval_every and step % run.eval_every == 0))

    def measure(step: int) -> None:
        """Of the checkpoint of this step, which is on the disk: nothing is lost if this fails."""
        full = state.full()
        if journal and evaluate:
            scores = build.scores_of(evaluate, config, full, processors)
            journal.write(step, {f"valid/{name}": value for name, value in scores.items()})
            checkpoint.record(out, step, sum(scores.values()) / max(len(scores), 1))
        parallel.barrier()

    journal = Log(out, start, total, run.loggers, recipe) if main else None
    if saved is not None and saved.score is None and measured(start):
        measure(start)  # it broke off the last time
    averages, step, skipped = Averages(), start, 0
    objective.train()
    last_log = last_save = time.monotonic()
    waited, items = 0.0, 0
    workers = places.workers if places and run.workers else run.workers
    # Closed at the end: workers that leave SIGTERM to this process would not end by themselves.
    batches = stack.enter_context(closing(loader(steps, start, min(total, stop_at or total), workers)))
    for step in range(start + 1, min(total, stop_at or total) + 1):
        asked = time.monotonic()
        group, after = next(batches)
        waited += time.monotonic() - asked
        # All chance in a step is of the step and the process: nothing else has to be known to go on.
        torch.manual_seed(recipe.seed + 1_000_003 * step + parallel.rank())
        rate = learning_rate(step - 1, recipe.optim.lr, recipe.schedule)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for i, batch in enumerate(group):
            with parallel.no_sync(spread, last=i == len(group) - 1):
                with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
                    found = spread(to_device(batch, device))
                found["loss"].backward()
            losses.append(found)
            items += len(batch["keys"]) * parallel.world_size()
        norm = parallel.clip(objective, recipe.optim.grad_clip)
        if places:
            places.lanes.update(after)
        if norm.isfinite():
            skipped = 0
            optimizer.step()
            if average:
                build.average_into(average, model, run.ema or 0.0)
            # The gradient is of the sum over the step's pairs; a term that several of them have is their mean.
            averages.add({"loss": torch.stack([found.pop("loss").detach() for found in losses]).sum()})
            for found in losses:
                averages.add(found)
            replaced = sum(len(batch["replaced"]) for batch in group)
            averages.add({"grad_norm": norm, "replaced": torch.tensor(float(replaced), device=device)})
        else:
            skipped += 1
            optimizer.zero_grad(set_to_none=True)
            _name_bad_step(out, step, norm, group, losses, skipped, run.max_bad_steps)

        now = time.monotonic()
        # Between the lines of the log, so that a resumed run writes the same ones.
        quiet = step % run.log_every == 0
        late = bool(quiet and run.save_minutes and now - last_save > 60 * run.save_minutes)
        stopping, late = parallel.any_of(asked_to_stop(), late)
        if step % run.log_every == 0 or step == total:
            spent = now - last_log
            speed = {"items_per_second": round(items / spent, 1), "data_wait": round(waited / spent, 3)}
            speed["seconds"] = round(spent, 2)
            scale = {} if model.logit_scale is None else {"logit_scale": model.logit_scale.exp().item()}
            values = {**averages.take(), "lr": rate, **speed, **scale, "peak_gigabytes": peak_memory(device) / 2**30}
            if journal:
                journal.write(step, values)
            last_log, waited, items = now, 0.0, 0
        due = run.save_every and step % run.save_every == 0
        if due or late or measured(step) or step == total or stopping:
            save(step)
            last_save = time.monotonic()
        if measured(step):
            measure(step)
            last_log = time.monotonic()
        if stopping and step < total:
            log.warning("stopped after step %d; the same command goes on", step)
            break

    if journal:
        journal.close()
    if step < total:
        return out
    full, folder = state.full(), out / "model"
    if main:
        tokenizer = out / "tokenizer.json"
        model = build.model_of(config, full)
        card = _card(recipe, step)
        weights.save(folder, model, config, tokenizer=tokenizer if tokenizer.exists() else None, card=card)
    parallel.barrier()
    return folder


@contextmanager
def _sigterm() -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM is only noted; what is yielded tells whether it came."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda *_: came.set())
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _name_bad_step(
    out: Path, step: int, norm: Tensor, group: list[Batch], losses: list[dict[str, Tensor]], count: int, limit: int
) -> None:
    """Warn of a step that is left out, and stop the run after too many in a row."""
    bad = [batch for batch, found in zip(group, losses, strict=True) if not found["loss"].isfinite()] or group
    keys = [key for batch in bad for key in batch["keys"]]
    named = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    if count > limit:
        raise UserError(
            f"{out}: the gradient of step {step} is {norm.item()}, as of the {limit} steps before; lower optim.lr, or "
            f"run.precision=float32, or look at the samples {named}"
        )
    log.warning("the gradient of step %d is %s: left out; its samples: %s", step, norm.item(), named)


def _card(recipe: Recipe, step: int) -> str:
    name = Path(recipe.run.out).name
    return f"# {name}\n\nTrained with onepeace for {step} steps. The recipe:\n\n```yaml\n{to_yaml(recipe)}```\n"
