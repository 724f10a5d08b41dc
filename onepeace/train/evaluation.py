"""Evaluation during a run, by the recipe's ``evaluate`` section."""

import sys
from pathlib import Path
from typing import Any

from onepeace.data.shards import expand
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError, expect
from onepeace.evaluate.protocols.protocol import Items
from onepeace.evaluate.report import ReportRow, as_table
from onepeace.evaluate.run import DataRoot, lacking_modalities, read_recipe, run
from onepeace.generative.generator import generator_of, writes
from onepeace.generative.tasks import FILE as TASKS
from onepeace.generative.tasks import read_tasks
from onepeace.hub.architectures import check_encodes
from onepeace.model import Encoder, Trained
from onepeace.train.model_config import make_config
from onepeace.train.recipe import Recipe
from onepeace.train.run import Evaluate


def evaluation(recipe: Recipe) -> Evaluate | None:
    """The ``evaluate`` argument of `loop.train`; None if the recipe has no evaluation.

    The function returns scores as {"set/metric": value} and prints them as a table. Sets are read from the data root.

    Raises:
        UserError: the recipe or a set does not exist, or a set has no shards; raised before the first step.
    """
    wanted = recipe.evaluate
    if wanted is None:
        return None
    known = read_recipe(wanted.recipe).sets
    if unknown := [name for name in wanted.sets or () if name not in known]:
        raise UserError(f"evaluate.sets names {unknown[0]!r}; {wanted.recipe} has {', '.join(known)}")
    sets = known if wanted.sets is None else {name: known[name] for name in wanted.sets}
    config, folder = make_config(recipe), DataRoot(recipe.data.root).folder()
    written = {name: protocol for name, protocol in sets.items() if protocol.needs_writer and writes(config)}
    encoded = {name: protocol for name, protocol in sets.items() if name not in written}
    if encoded:
        check_encodes(config, "evaluate")
    for name, protocol in sets.items():
        if name in written or not lacking_modalities(protocol, config.model.adapters):
            try:
                # Options may be items too, such as those that a baseline learns from.
                for items in (*protocol.sides, *vars(protocol).values()):
                    if isinstance(items, Items):
                        expand(items.shards, folder)
            except UserError as error:
                raise UserError(f"evaluate: set {name}: {error}") from error

    def scores(model: Trained, processors: dict[str, Any]) -> dict[str, float]:
        rows: list[ReportRow] = []
        if encoded:
            rows += run(Embedder(expect(model, Encoder), processors), encoded, folder)
        if written:
            known = read_tasks(Path(recipe.run.out) / TASKS)
            writer = generator_of(config, model, processors, processors["text"].tokenizer, known)
            rows += run(writer, written, folder)
        print(as_table(rows), file=sys.stderr)
        return {f"{row.set}/{row.metric}": row.value for row in rows}

    return scores
