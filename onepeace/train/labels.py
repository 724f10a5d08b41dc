"""Labels of task heads: listed in a recipe, read from a file, or collected from the targets of the data."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onepeace.config import Config, Options
from onepeace.data.reader import Source
from onepeace.data.targets import LABELS
from onepeace.errors import UserError
from onepeace.evaluate.protocols.classes import read_class_names
from onepeace.train.recipe import Recipe
from onepeace.train.terms.heads import Supervised
from onepeace.train.terms.known import TERMS

AUTO = "auto"
"""Value of a head's ``labels`` that stands for all labels in the training data."""


def head_options(name: str, options: Options, recipe: Recipe) -> Options:
    """Options of a head, completed by its labels and by the task and the number of outputs of the term that trains it.

    For ``labels: auto`` they have two empty labels until the data is read (`label_heads`).
    """
    found = dict(options)
    for own, term in _supervised(recipe):
        if own.head == name:
            found.setdefault("task", term.task)
            if term.num_outputs is not None:
                found.setdefault("num_classes", term.num_outputs)
    labels = found.get("labels")
    if labels == AUTO:
        found["labels"] = ["", ""]
    elif isinstance(labels, str):
        path = Path(os.path.expandvars(recipe.data.root), labels)
        if not path.exists():
            raise UserError(
                f"model.heads.{name}.labels: {path} is not there; give data.root=FOLDER (it is {recipe.data.root}), or "
                "list the labels"
            )
        found["labels"] = read_class_names(path)
    if labels is not None:
        found["num_classes"] = len(found["labels"])
    return found


def _supervised(recipe: Recipe) -> Iterator[tuple[Any, type[Supervised[Any]]]]:
    """Options and class of each term that trains a head."""
    terms = ((options, TERMS[options.term]) for options in recipe.terms)
    return ((options, term) for options, term in terms if issubclass(term, Supervised))


def label_heads(config: Config, recipe: Recipe, sources: Sequence[Source]) -> Config:
    """The configuration; heads with ``labels: auto`` get the labels in the targets of the samples."""
    wanted = recipe.model.get("heads", {})
    heads = dict(getattr(config.model, "heads", {}))
    for options, term in _supervised(recipe):
        name = options.head
        if wanted.get(name, {}).get("labels") == AUTO:
            target = term.target
            targets = (sample.targets for source in sources for sample in source.samples)
            labels_in = LABELS.get(target, lambda value: [value])
            labels = sorted({label for own in targets if target in own for label in labels_in(own[target])})
            if len(labels) < 2:
                found = labels[0] if labels else "none"
                raise UserError(
                    f"model.heads.{name}: the target {target} has one label ({found}); it needs two or more"
                )
            heads[name] = {**heads[name], "labels": labels, "num_classes": len(labels)}
    return replace(config, model=replace(config.model, heads=heads)) if heads else config
