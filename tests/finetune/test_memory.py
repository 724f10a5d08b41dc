"""Settings follow the memory there is."""

from collections import Counter
from types import SimpleNamespace

import pytest

from onepeace.finetune.recipe import auto_recipe, fitting_recipe
from onepeace.finetune.split import SplitSummary
from onepeace.plan.step import StepCost


@pytest.fixture
def content(random_folder):
    labels = ["a", "b"]
    summary = SplitSummary("", {"train/image+text": 100}, 100, labels, not_held_out=[], left_out=[])
    return auto_recipe(random_folder, random_folder, random_folder, summary)


@pytest.fixture
def planned(monkeypatch):
    """Parts of a step of the recipes that were planned; one in a single part needs 100 bytes, others 60."""
    parts = []

    def make_plan(recipe):
        parts.append(recipe.run.grad_cache_chunks)
        memory = Counter(activations=100 if parts[-1] == 1 else 60)
        return SimpleNamespace(step=StepCost(memory, Counter(), 0, Counter(), 0))

    monkeypatch.setattr("onepeace.finetune.recipe.make_plan", make_plan)
    return parts


# A plan may fill 80 % of the memory.
@pytest.mark.parametrize(("available", "parts"), [(125, [1]), (124, [1, 16]), (74, [1, 16])])
def test_step_is_in_parts_if_it_would_not_fit(content, planned, available, parts):
    lines = []
    recipe = fitting_recipe(content, [], available, lines.append)

    assert planned == parts
    assert recipe.run.grad_cache_chunks == parts[-1]
    assert (recipe.run.recompute == "blocks") == (parts[-1] == 16)
    (line,) = lines
    assert ("may not fit" in line) == (available == 74)


def test_real_plan(content):
    """The recipe has terms that read targets."""
    lines = []
    fitting_recipe(content, [], 10**12, lines.append)
    (line,) = lines
    assert line.endswith("of the 1000.0 GB that are available")
