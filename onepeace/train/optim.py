"""Optimizer settings: frozen parameters, weight decay, and factors of the learning rate by layer.

Every rule depends on parameter names alone, so that a resumed run needs no further state.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.errors import UserError
from onepeace.train.sections import OptimConfig, OptimGroup


def freeze(model: nn.Module, patterns: Sequence[str] | Mapping[str, Sequence[str]]) -> None:
    """Freeze parameters by name.

    Args:
        patterns: shell patterns ("blocks.*.ffn.text.*") of the names to freeze, or {"except": patterns} of all others.

    Raises:
        UserError: a pattern matches no parameter, or nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    matched_are_trained = isinstance(patterns, Mapping)
    if isinstance(patterns, Mapping):
        for field in sorted(set(patterns) - {"except"}):
            raise UserError(f"freeze.{field} is not a field; freeze is a list of patterns or {{except: patterns}}")
        patterns = patterns.get("except") or []
    matched: set[str] = set()
    for pattern in patterns:
        matched.update(matching(pattern, names, "freeze"))
    trained = {name for name in names if (name in matched) == matched_are_trained}
    if not trained:
        raise UserError(f"freeze: all {len(names)} parameters are frozen; nothing is left to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)


def matching(pattern: str, names: Sequence[str], where: str) -> list[str]:
    """Names that match a shell pattern; UserError that starts with ``where`` if there is none."""
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches:
        raise UserError(f"the pattern {pattern!r} matches none of {len(names)} names, such as {names[0]}", where=where)
    return matches


def layer_id(name: str, depth: int) -> int:
    """Layer number of a parameter in a model of ``depth`` blocks, for layer-wise decay.

    0 for the adapters; i + 1 for block i and its bias table; depth + 1 for layers after the blocks.
    """
    in_block = re.match(r"(?:blocks|adapters\.[^.]+\.bias_tables)\.(\d+)\.", f"{name}.")
    if in_block:
        return int(in_block[1]) + 1
    return 0 if name.startswith("adapters.") else depth + 1


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups of trainable parameters for torch.optim, by pattern of ``config.groups``, factor of the rate and decay.

    Vectors, scalars, biases and the parameters of ``model.no_weight_decay()`` (CLS tokens, positions) do not decay,
    unless ``decay_all``. With ``layer_decay`` d, layer i of L + 1 learns at d^(L + 1 - i) of the rate. The first of
    ``groups`` that matches a name scales its rate further, and may replace its weight decay. Muon trains the matrices
    of the blocks; parameters in groups with ``use_fallback`` are left to AdamW.

    Raises:
        UserError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.groups:
        matching(pattern, names, "optim.groups")
    depth = _depth(names)
    without_decay = _without_decay(model)
    groups: dict[tuple[str, float, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern, settings = _settings(name, config)
        scale = settings.lr_scale
        if config.layer_decay is not None:
            scale *= config.layer_decay ** (depth + 1 - layer_id(name, depth))
        decay = config.weight_decay if settings.weight_decay is None else settings.weight_decay
        if name in without_decay and not config.decay_all:
            decay = 0.0
        use_fallback = config.is_muon and not _is_matrix_of_block(name, parameter)
        groups.setdefault((pattern, scale, decay, use_fallback), []).append((name, parameter))
    return [
        {
            "params": members,
            "pattern": pattern,
            "lr_scale": scale,
            "weight_decay": decay,
            "use_fallback": use_fallback,
        }
        for (pattern, scale, decay, use_fallback), members in groups.items()
    ]


def _is_matrix_of_block(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and re.search(r"(^|\.)blocks\.\d+\.", name) is not None


def _depth(names: Sequence[str]) -> int:
    """Number of blocks of a model with these parameters."""
    depth = 0
    for name in names:
        match = re.match(r"blocks\.(\d+)\.", name)
        if match:
            depth = max(depth, int(match[1]) + 1)
    return depth


def _without_decay(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay."""
    listed = getattr(model, "no_weight_decay", None)
    names = set(listed()) if callable(listed) else set()
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1 or name.endswith(".bias"):
            names.add(name)
    return names


def _settings(name: str, config: OptimConfig) -> tuple[str, OptimGroup]:
    """The first pattern of ``groups`` that matches a name, and its settings; "" and the defaults if none does."""
    for pattern, settings in config.groups.items():
        if fnmatchcase(name, pattern):
            return pattern, settings
    return "", OptimGroup()


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Learning rate of the last step by pattern of ``optim.groups``; the highest, if it differs from layer to layer."""
    by_pattern: dict[str, float] = {}
    for group in optimizer.param_groups:
        pattern = group["pattern"]
        if pattern:
            by_pattern[pattern] = max(float(group["lr"]), by_pattern.get(pattern, 0.0))
    return by_pattern


def make_optimizer(
    model: nn.Module, config: OptimConfig, others: Iterable[tuple[str, nn.Parameter]] = ()
) -> torch.optim.Optimizer:
    """The optimizer of a recipe; each group of parameters learns at ``lr_scale`` times a step's rate.

    The released code adds eps to sqrt(v) before the bias correction, torch's AdamW after it; at 1e-8 they agree.

    Args:
        model: model with `parameter_groups`.
        config: options of the optimizer.
        others: further parameters with their names, which do not decay.
    """
    groups = parameter_groups(model, config)
    members = list(others)
    if members:
        terms = {"pattern": "", "lr_scale": 1.0, "weight_decay": 0.0, "use_fallback": config.is_muon}
        groups.append({"params": members, **terms})
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, fused=True, **config.arguments)
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(groups, config.name, lr=config.lr, **config.arguments)


def update_average(average: Mapping[str, Tensor], model: nn.Module, decay: float) -> None:
    """Update the exponential moving average of the weights, if there is one."""
    if not average:
        return
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        weights: list[Tensor] = [parameters[name] for name in average]
        torch._foreach_lerp_(list(average.values()), weights, 1 - decay)
