"""Recipes of two parts of one run: the fields that may differ when a run is resumed."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from onepeace.config import Options, to_plain
from onepeace.errors import UserError
from onepeace.train.recipe import Recipe
from onepeace.train.terms.registry import read_terms

MAY_CHANGE = frozenset(
    {
        "evaluate",
        "imports",
        "schedule.steps",
        "data.root",
        "data.frozen_folder",
        "data.cache_gigabytes",
        "run.out",
        "run.log_every",
        "run.eval_every",
        "run.save_every",
        "run.save_minutes",
        "run.keep",
        "run.workers",
        "run.loggers",
        "run.parallel",
        "run.shard",
        "run.keep_gathered",
        "run.compile",
        "run.recompute",
    }
)
"""Fields that do not affect the result of a step, except for rounding, and schedule.steps, which affects its rate."""


def check_same(saved: str, recipe: Recipe, out: Path, step: int) -> None:
    """Check that a run may resume with a recipe.

    Args:
        saved: the recipe of the checkpoint, as YAML. Fields in MAY_CHANGE, and fields that only one of two versions of
            the program has, may differ.
        recipe: the recipe to resume with.
        out: folder of the run.
        step: step of the checkpoint.

    Raises:
        UserError: another field differs, or schedule.steps is below the step.
    """
    if recipe.schedule.steps < step:
        raise UserError(
            f"its checkpoint is of step {step}, and schedule.steps is {recipe.schedule.steps}; raise it, or "
            "give run.out another folder",
            where=out,
        )
    old = _settings(yaml.safe_load(saved))
    new = _settings(to_plain(recipe))
    with suppress(UserError):  # with the defaults of the terms' options
        old["objective"] = to_plain(read_terms(old["objective"]))
    for name, value in new.items():
        if name in old and name not in MAY_CHANGE and old[name] != value:
            raise UserError(
                f"{out} holds a run with another {name}: {old[name]!r:.200}, not {value!r:.200}; "
                "give run.out another folder, or remove this one"
            )


def _settings(content: Mapping[str, Any]) -> Options:
    """Fields of a recipe by name; those of a section are separate, as "optim.lr"."""
    sections = set()
    for field in fields(Recipe):
        if isinstance(field.type, type) and is_dataclass(field.type):
            sections.add(field.name)
    settings: Options = {}
    for name, value in content.items():
        if name not in sections:
            settings[name] = value
            continue
        for field_name, field_value in value.items():
            settings[f"{name}.{field_name}"] = field_value
    return settings
