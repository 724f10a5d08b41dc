"""Labels of task heads: listed in a recipe, read from a file, or collected from the targets of the data."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onepeace.config import Config, Options
from onepeace.data.reader import Source
from onepeace.data.sample import LABELS
from onepeace.errors import UserError
from onepeace.evaluate.protocols.classes import read_class_names
from onepeace.train.recipe import Recipe
from onepeace.train.terms.heads import Supervised, SupervisedOptions
from onepeace.train.terms.registry import TERMS

AUTO = "auto"
"""Value of a head's ``labels`` that stands for all labels in the training data."""


def head_options(name: str, options: Options, recipe: Recipe) -> Options:
    """Options of a head, completed by its labels and by the task and the number of outputs of the term that trains it.

    For ``labels: auto`` they have two empty labels until the data is read (`label_heads`).
    """
    completed = dict(options)
    for term_options, term in _supervised(recipe):
        if term_options.head == name:
            completed.setdefault("task", term.task)
            if term.num_outputs is not None:
                completed.setdefault("num_classes", term.num_outputs)
    labels = completed.get("labels")
    if labels == AUTO:
        completed["labels"] = ["", ""]
    elif isinstance(labels, str):
        completed["labels"] = _labels_of_file(name, labels, recipe.data.root)
    if labels is not None:
        completed["num_classes"] = len(completed["labels"])
    return completed


def _labels_of_file(head: str, file: str, root: str) -> list[str]:
    path = Path(os.path.expandvars(root), file)
    if not path.exists():
        raise UserError(
            f"model.heads.{head}.labels: {path} is not there; give data.root=FOLDER (it is {root}), or list the labels"
        )
    return read_class_names(path)


def _supervised(recipe: Recipe) -> Iterator[tuple[SupervisedOptions, type[Supervised[Any]]]]:
    """Options and class of each term that trains a head."""
    for options in recipe.terms:
        term = TERMS[options.term]
        if issubclass(term, Supervised) and isinstance(options, SupervisedOptions):
            yield options, term


def label_heads(config: Config, recipe: Recipe, sources: Sequence[Source]) -> Config:
    """The configuration; heads with ``labels: auto`` get the labels in the targets of the samples.

    Raises:
        UserError: the samples have fewer than two labels.
    """
    heads = dict(config.model.heads)
    for options, term in _supervised(recipe):
        name = options.head
        if recipe.model.get("heads", {}).get(name, {}).get("labels") != AUTO:
            continue
        labels = _labels_of_data(term.target, sources)
        if len(labels) < 2:
            raise UserError(
                f"model.heads.{name}: the target {term.target} has one label ({labels[0] if labels else 'none'}); it "
                "needs two or more"
            )
        heads[name] = {**heads[name], "labels": labels, "num_classes": len(labels)}
    if not heads:
        return config
    return replace(config, model=replace(config.model, heads=heads))


def _labels_of_data(target: str, sources: Sequence[Source]) -> list[str]:
    """All labels in a target of the samples, sorted."""
    labels_in = LABELS.get(target, lambda value: [value])
    labels: set[str] = set()
    for source in sources:
        for sample in source.samples:
            if target in sample.targets:
                labels.update(labels_in(sample.targets[target]))
    return sorted(labels)
