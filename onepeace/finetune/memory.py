"""Settings that make a fine-tuning fit into memory; those that do not change the result are tried first."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy

from onepeace.config import Options, apply_override, build, merge
from onepeace.plan.plan import make_plan
from onepeace.plan.synthetic import UNITS
from onepeace.train.recipe import Recipe

ROOM = 0.8
"""Share of the available memory that a plan may fill: kernels need workspace that is not in the plan."""
RECOMPUTED: Options = {"run": {"recompute": "blocks"}}
LORA: Options = {
    "lora": {"rank": 16, "alpha": 32},
    "freeze": {"except": ["heads.*", "logit_scale"]},
    **RECOMPUTED,
}
CHUNKS = (4, 16)
"""Parts of a step (gradient caching): the loss is of the whole batch, the activations are those of one part."""


def fitting_recipe(
    content: Options, overrides: Sequence[str], available: int | None, say: Callable[[str], None]
) -> Recipe:
    """The recipe, or its first form that fits into memory: with recomputed activations, with steps in parts, and
    finally with LoRA instead of training all weights.

    Args:
        content: as `auto_recipe` returns it.
        overrides: the user's; they override all choices made here.
        available: bytes; None if unknown, and then the recipe is returned without a check.
        say: called with a line about the needed and the available memory.
    """
    memory_line = ""
    for form in _forms(content):
        filled = deepcopy(form)
        for override in overrides:
            apply_override(filled, override)
        recipe = build(Recipe, filled, "the recipe of the fine-tuning")
        if available is None or any(set(keys) - set(UNITS) for keys in recipe.data.modalities.values()):
            return recipe
        needed = make_plan(recipe).step.memory.total()
        memory_line = f"memory: about {needed / 1e9:.1f} GB of the {available / 1e9:.1f} GB that are available"
        if needed <= ROOM * available:
            say(memory_line)
            return recipe
    say(f"{memory_line}; it may not fit (give run.batch_size=..., or start from a smaller model)")
    return recipe


def _forms(content: Options) -> Iterator[Options]:
    parts = [merge(RECOMPUTED, {"run": {"grad_cache_chunks": count}}) for count in CHUNKS]
    for change in ({}, RECOMPUTED, *parts):
        yield merge(content, change)
    if "lora" not in content:
        for change in ({}, *parts):
            yield merge(merge(content, LORA), change)
