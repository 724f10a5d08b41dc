"""Evaluation during a run, by the recipe's ``evaluate`` section, in all processes together."""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onepeace.data.source import expand
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError, expect
from onepeace.evaluate.protocols import EvaluationProtocol
from onepeace.evaluate.protocols.protocol import Items, sharing
from onepeace.evaluate.report import ReportRow, as_table
from onepeace.evaluate.run import DataRoot, lacking_modalities, read_recipe, run
from onepeace.hub.architectures import can_write, check_encodes
from onepeace.hub.folder import TASKS
from onepeace.model import Encoder, Trained
from onepeace.train import parallel
from onepeace.train.model_config import make_config
from onepeace.train.recipe import Recipe
from onepeace.train.sections import EvaluateConfig
from onepeace.train.trainer import Evaluate

Sets = Mapping[str, EvaluationProtocol]
"""Sets of an evaluation recipe by name."""


def evaluation(recipe: Recipe) -> Evaluate | None:
    """The ``evaluate`` argument of `trainer.train`; None if the recipe has no evaluation.

    The function returns scores as {"set/metric": value} and prints them as a table. Sets are read from the data root.
    All processes must call it: each encodes a part of the items, and all get all scores.

    Raises:
        UserError: the recipe or a set does not exist, or a set has no shards; raised before the first step.
    """
    if recipe.evaluate is None:
        return None
    sets = _chosen_sets(recipe.evaluate)
    config = make_config(recipe)
    folder = DataRoot(recipe.data.root).folder()
    written = {}
    encoded = {}
    for name, protocol in sets.items():
        if protocol.needs_writer and can_write(config):
            written[name] = protocol
        else:
            encoded[name] = protocol
    if encoded:
        check_encodes(config, "evaluate")
    for name, protocol in sets.items():
        if name in written or not lacking_modalities(protocol, config.model.adapters):
            _check_shards(name, protocol, folder)

    def scores(model: Trained, processors: dict[str, Any]) -> dict[str, float]:
        rows: list[ReportRow] = []
        with sharing(share_out):
            if encoded:
                rows += run(Embedder(expect(model, Encoder), processors), encoded, folder)
            if written:
                protocol = next(iter(written.values()))
                writer = protocol.writer(config, model, processors, Path(recipe.run.out) / TASKS)
                rows += run(writer, written, folder)
        if parallel.rank() == 0:
            print(as_table(rows), file=sys.stderr)
        return {f"{row.set}/{row.metric}": row.value for row in rows}

    return scores


def _chosen_sets(options: EvaluateConfig) -> Sets:
    """The sets of the evaluation recipe that the training recipe names, or all."""
    sets = read_recipe(options.recipe).sets
    if options.sets is None:
        return sets
    for name in options.sets:
        if name not in sets:
            raise UserError(f"evaluate.sets names {name!r}; {options.recipe} has {', '.join(sets)}")
    return {name: sets[name] for name in options.sets}


def _check_shards(name: str, protocol: EvaluationProtocol, folder: Path) -> None:
    """UserError if items of a set have no shards; options may be items too, such as those that a baseline learns."""
    try:
        for items in (*protocol.sides, *vars(protocol).values()):
            if isinstance(items, Items):
                expand(items.shards, folder)
    except UserError as error:
        raise UserError(f"evaluate: set {name}: {error}") from error


def share_out(compute: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> Any:
    """Results for all items, of which each process computes a part; see `sharing`.

    Raises:
        UserError: an item of any process fails; all processes raise it.
    """
    world_size = parallel.world_size()
    if world_size == 1:
        return compute(items)
    results = _computed_everywhere(compute, items[parallel.rank() :: world_size])
    order: list[int] = []
    for first in range(world_size):
        order += range(first, len(items), world_size)
    if isinstance(results, Tensor):
        rows, _ = parallel.gather_ragged(results)
        return rows[torch.tensor(order).argsort()]
    gathered = list(chain.from_iterable(parallel.gather_objects(list(results))))
    by_index = dict(zip(order, gathered, strict=True))
    return [by_index[index] for index in range(len(items))]


def _computed_everywhere(compute: Callable[[Sequence[Any]], Any], part: Sequence[Any]) -> Any:
    """This process's results, if those of all processes can be computed."""
    results = None
    problem = None
    try:
        results = compute(part)
    except UserError as error:
        problem = str(error)
    for message in parallel.gather_objects(problem):
        if message is not None:
            raise UserError(message)
    return results
