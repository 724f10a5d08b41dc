"""What a recipe's ``evaluate`` measures during its run."""

from collections.abc import Callable
from typing import Any

from onepeace.config import build
from onepeace.evaluate.run import training_scores
from onepeace.train.recipe import EvaluateConfig, Recipe
from onepeace.train.start import make_config


def evaluation(recipe: Recipe) -> Callable[[Any, Any], dict[str, float]] | None:
    """The ``evaluate`` argument of `loop.train`, on the run's data root; None when the recipe asks for nothing.

    Raises:
        UserError: a recipe or a set that is not there, or has no shards.
    """
    if not recipe.evaluate:
        return None
    wanted = build(EvaluateConfig, recipe.evaluate, "evaluate")
    return training_scores(wanted.recipe, wanted.sets, recipe.data.root, make_config(recipe).model.adapters)
