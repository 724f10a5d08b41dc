"""Optimizer settings: frozen parameters, weight decay, and learning rates by layer and step.

Every rule depends on parameter names or on the step alone, so that a resumed run needs no further state.
"""

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.errors import UserError
from onepeace.train.sections import OptimConfig, OptimGroup, ScheduleConfig


def freeze(model: nn.Module, patterns: Sequence[str] | Mapping[str, Sequence[str]]) -> None:
    """Freeze parameters by name.

    Args:
        patterns: shell patterns ("blocks.*.ffn.text.*") of the names to freeze, or {"except": patterns} of all others.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    inverse = isinstance(patterns, Mapping)
    if isinstance(patterns, Mapping):
        if unknown := sorted(set(patterns) - {"except"}):
            raise UserError(f"freeze.{unknown[0]} is not a field; freeze is a list of patterns or {{except: patterns}}")
        patterns = patterns.get("except") or []
    matched = {name for pattern in patterns for name in matching(pattern, names, "freeze")}
    if all((name in matched) != inverse for name in names):
        raise UserError(f"freeze: all {len(names)} parameters are frozen; nothing is left to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_((name in matched) == inverse)


def matching(pattern: str, names: Sequence[str], where: str) -> list[str]:
    """Names that match a shell pattern; UserError that starts with ``where`` if there is none."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise UserError(f"{where}: the pattern {pattern!r} matches none of {len(names)} names, as {names[0]}")
    return found


def layer_id(name: str, depth: int) -> int:
    """Layer number of a parameter in a model of ``depth`` blocks, for layer-wise decay.

    0 for the adapters; i + 1 for block i and its bias table; depth + 1 for layers after the blocks.
    """
    if found := re.match(r"(?:blocks|adapters\.[^.]+\.bias_tables)\.(\d+)\.", name + "."):
        return int(found[1]) + 1
    return 0 if name.startswith("adapters.") else depth + 1


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of trainable parameters for torch.optim, with names, by factor of the learning rate and weight decay.

    Vectors, scalars, biases and the parameters of ``model.no_weight_decay()`` (CLS tokens, positions) do not decay,
    unless ``decay_all``. With ``layer_decay`` d, layer i of L + 1 learns at d^(L + 1 - i) of the rate. The first of
    ``groups`` that matches a name scales its rate further, and may replace its weight decay.

    Raises:
        UserError: a pattern matches no parameter.
    """
    listed = getattr(model, "no_weight_decay", None)
    skip: set[str] = set(listed()) if callable(listed) else set()
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.groups:
        matching(pattern, names, "optim.groups")
    depth = 1 + max((int(found[1]) for name in names if (found := re.match(r"blocks\.(\d+)\.", name))), default=-1)
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = next((group for pattern, group in config.groups.items() if fnmatchcase(name, pattern)), OptimGroup())
        decay = config.weight_decay if own.weight_decay is None else own.weight_decay
        if not config.decay_all and (parameter.ndim <= 1 or name.endswith(".bias") or name in skip):
            decay = 0.0
        scale = 1.0 if config.layer_decay is None else config.layer_decay ** (depth + 1 - layer_id(name, depth))
        scale *= own.lr_scale
        groups.setdefault((scale, decay), []).append((name, parameter))
    return [{"params": members, "lr_scale": scale, "weight_decay": decay} for (scale, decay), members in groups.items()]


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`; each group learns at ``lr_scale`` times a step's rate.

    The released code adds eps to sqrt(v) before the bias correction, torch after it; at eps 1e-8 they agree.
    """
    groups = parameter_groups(model, config)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate after ``step`` updates: linear warm-up from min_lr to ``peak``, then cosine or linear decay to
    min_lr.

    The first update (step 0) runs at min_lr, as in the released code. From ``schedule.steps`` on the rate stays at
    min_lr, where the released code would start another cosine at a tenth.
    """
    low, warmup, total = schedule.min_lr, schedule.warmup, schedule.steps
    if step < warmup:
        return low + step * (peak - low) / warmup
    if step >= total:
        return low
    if schedule.name == "linear":
        return low + (peak - low) * (total - step) / (total - warmup)
    return low + (peak - low) / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def update_average(average: Mapping[str, Tensor], model: nn.Module, decay: float) -> None:
    """Update the exponential moving average of the weights, if there is one."""
    if average:
        own = dict(model.named_parameters())
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), [own[name] for name in average], 1 - decay)
