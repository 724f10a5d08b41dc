"""The training loop: next batches, objective, backward, clip, step, log, save. It knows steps, not tasks.

Everything a step does is a function of the recipe, the step's number and the state in the last checkpoint, so a run
that was killed goes on as if it had not been. Read recipe.py for what can be set.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onepeace.config import write_config
from onepeace.data.batches import Steps, loader
from onepeace.data.shards import read_source
from onepeace.device import bfloat16_is_fast, choose_device
from onepeace.errors import UserError
from onepeace.hub import weights
from onepeace.model import OnePeace
from onepeace.train import build, checkpoint
from onepeace.train.log import Averages, Log
from onepeace.train.objective import Objective
from onepeace.train.optim import freeze, learning_rate, make_optimizer, set_learning_rate
from onepeace.train.recipe import Recipe, to_yaml

log = logging.getLogger(__name__)

Evaluate = Callable[[OnePeace, dict[str, Any]], dict[str, float]]


def train(recipe: Recipe, evaluate: Evaluate | None = None, stop_at: int | None = None) -> Path:
    """Run a recipe to its end, from its last checkpoint if there is one.

    Args:
        recipe: what to do.
        evaluate: (model, decoders) -> named scores, called every ``run.eval_every`` steps and at the end.
        stop_at: end after this step as if interrupted: nothing is saved that was not due.

    Returns:
        The folder of the trained model (config.yaml, model.safetensors, tokenizer.json, MODEL_CARD.md), or of the run
        if it was stopped.

    Raises:
        UserError: data, recipe or checkpoint that do not fit together; a loss that is not finite.
    """
    out = Path(recipe.run.out)
    sources = [read_source(s.shards, s.pair, recipe.data.root) for s in recipe.data.train]
    config = build.make_config(recipe)
    if "text" in config.model.adapters:
        build.make_tokenizer(recipe, sources, out / "tokenizer.json")
    decoders = build.make_decoders(config, out)
    device = choose_device()
    model = build.make_model(recipe, config)
    objective = Objective(model, recipe.objective, build.make_teachers(recipe, sources, decoders)).to(device)
    if recipe.freeze:
        freeze(model, recipe.freeze)
    optimizer = make_optimizer(model, recipe.optim)
    if len(objective.teacher_heads):
        heads = list(objective.teacher_heads.named_parameters())
        optimizer.add_param_group({"params": heads, "lr_scale": 1.0, "weight_decay": 0.0})
    average = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad and recipe.run.ema}
    use_bfloat16 = {"float32": False, "bfloat16": True}.get(recipe.run.precision, bfloat16_is_fast(device))
    steps = Steps(recipe, sources, decoders, {key: a.token_lengths for key, a in model.adapters.items()})

    start = 0
    resolved = to_yaml(recipe)
    if (saved := checkpoint.newest(out)) is not None:
        _check_same(saved, resolved, out)
        objective.load_state_dict(saved.model)
        optimizer.load_state_dict(saved.optimizer)
        average = {name: tensor.to(device) for name, tensor in saved.ema.items()}
        saved.restore_generators()
        start = saved.step
        log.warning("going on from step %d of %s", start, out)
    else:
        torch.manual_seed(recipe.seed)
        out.mkdir(parents=True, exist_ok=True)
        write_config(recipe, out / "recipe.yaml")

    def save(step: int, score: float | None = None) -> None:
        state = {"model": objective.state_dict(), "optimizer": optimizer.state_dict(), "ema": average}
        checkpoint.save(out, step, **state, recipe=resolved, score=score, keep=recipe.run.keep)

    total = recipe.schedule.steps
    journal, averages = Log(out, start, total), Averages()
    objective.train()
    last_log = last_save = time.monotonic()
    waited, items, step = 0.0, 0, start
    batches = loader(steps, start, min(total, stop_at or total), recipe.run.workers)
    for step in range(start + 1, min(total, stop_at or total) + 1):
        asked = time.monotonic()
        group = next(batches)
        waited += time.monotonic() - asked
        rate = learning_rate(step - 1, recipe.optim.lr, recipe.schedule)
        set_learning_rate(optimizer, rate)
        optimizer.zero_grad(set_to_none=True)
        for batch in group:
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bfloat16):
                found = objective(_to(batch, device))
            found["loss"].backward()
            averages.add(found)
            items += len(batch["keys"])
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), recipe.optim.grad_clip or float("inf"))
        if not torch.isfinite(norm):
            raise UserError(f"{out}: the gradient of step {step} is {norm}; lower optim.lr, or run.precision=float32")
        optimizer.step()
        if average:
            build.average_into(average, model, recipe.run.ema or 0.0)
        averages.add({"grad_norm": norm})

        now = time.monotonic()
        if step % recipe.run.log_every == 0 or step == total:
            spent = now - last_log
            speed = {"items_per_second": round(items / spent, 1), "data_wait": round(waited / spent, 3)}
            scale = {} if model.logit_scale is None else {"logit_scale": model.logit_scale.exp().item()}
            journal.write(step, {**averages.take(), "lr": rate, **speed, **scale})
            last_log, waited, items = now, 0.0, 0
        score = None
        every = recipe.run.eval_every
        if evaluate and (step == total or (every and step % every == 0)):
            scores = _scores(evaluate, model, decoders, average)
            score = sum(scores.values()) / max(len(scores), 1)
            journal.write(step, {f"valid/{name}": value for name, value in scores.items()})
            last_log = time.monotonic()
        due = recipe.run.save_every and step % recipe.run.save_every == 0
        # Between the lines of the log, so that a resumed run writes the same ones.
        quiet = step % recipe.run.log_every == 0
        late = quiet and recipe.run.save_minutes and now - last_save > 60 * recipe.run.save_minutes
        if due or late or score is not None or step == total:
            save(step, score)
            last_save = time.monotonic()

    if step < total:
        return out
    model.load_state_dict(average, strict=False)
    folder = out / "model"
    tokenizer = out / "tokenizer.json"
    card = _card(recipe, step)
    weights.save(folder, model, config, tokenizer=tokenizer if tokenizer.exists() else None, card=card)
    return folder


def _scores(
    evaluate: Evaluate, model: OnePeace, decoders: dict[str, Any], average: dict[str, Tensor]
) -> dict[str, float]:
    """Scores of the averaged weights, if there are any, else of the model's; the model is as it was after."""
    own = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name in average}
    generator = torch.get_rng_state()
    model.load_state_dict(average, strict=False)
    try:
        return evaluate(model.eval(), decoders)
    finally:
        model.load_state_dict(own, strict=False)
        model.train()
        torch.set_rng_state(generator)


def _to(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Every tensor of a batch, nested ones too, on the device."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, non_blocking=True)
        if isinstance(value, dict):
            return {key: move(item) for key, item in value.items()}
        return tuple(move(item) for item in value) if isinstance(value, tuple) else value

    return move(batch)


def _check_same(saved: checkpoint.Checkpoint, resolved: str, out: Path) -> None:
    """A run goes on only under its own recipe; where it lies and how often it speaks may change."""
    import yaml

    old, new = yaml.safe_load(saved.recipe), yaml.safe_load(resolved)
    for recipe in (old, new):
        recipe.pop("run")
        recipe["data"].pop("root")
    for name in new:
        if old.get(name) != new[name]:
            raise UserError(f"{out} holds a run with another {name}; give run.out another folder, or remove this one")


def _card(recipe: Recipe, step: int) -> str:
    name = Path(recipe.run.out).name
    return f"# {name}\n\nTrained with onepeace for {step} steps. The recipe:\n\n```yaml\n{to_yaml(recipe)}```\n"
