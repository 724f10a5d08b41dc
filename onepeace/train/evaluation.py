"""What a recipe's ``evaluate`` measures during its run."""

import sys
from typing import Any

from onepeace.config import build
from onepeace.data.shards import expand
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError
from onepeace.evaluate.report import as_table
from onepeace.evaluate.run import DataRoot, lacking_modalities, read_recipe, run
from onepeace.hub.architectures import check_encodes
from onepeace.model import OnePeace
from onepeace.train.recipe import EvaluateConfig, Recipe
from onepeace.train.run import Evaluate
from onepeace.train.start import make_config


def evaluation(recipe: Recipe) -> Evaluate | None:
    """The ``evaluate`` argument of `loop.train`, on the run's data root; None when the recipe asks for nothing.

    Its scores are {"set/metric": value}, and it prints their table.

    Raises:
        UserError: a recipe or a set that is not there, or has no shards: now, and not after the last step.
    """
    if not recipe.evaluate:
        return None
    wanted = build(EvaluateConfig, recipe.evaluate, "evaluate")
    known = read_recipe(wanted.recipe).sets
    if unknown := [name for name in wanted.sets or () if name not in known]:
        raise UserError(f"evaluate.sets names {unknown[0]!r}; {wanted.recipe} has {', '.join(known)}")
    sets = known if wanted.sets is None else {name: known[name] for name in wanted.sets}
    config, folder = make_config(recipe), DataRoot(recipe.data.root).folder()
    check_encodes(config, "evaluate")
    modalities = config.model.adapters
    for name, protocol in sets.items():
        if not lacking_modalities(protocol, modalities):
            try:
                for side in protocol.sides:
                    expand(side.shards, folder)
            except UserError as error:
                raise UserError(f"evaluate: set {name}: {error}") from error

    def scores(model: OnePeace, processors: dict[str, Any]) -> dict[str, float]:
        rows = list(run(Embedder(model, processors), sets, folder))
        print(as_table(rows), file=sys.stderr)
        return {f"{row.set}/{row.metric}": row.value for row in rows}

    return scores
