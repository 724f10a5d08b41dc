"""Settings follow the memory there is: what is computed again, in parts or by adapters, in this order."""

from collections import Counter
from types import SimpleNamespace

import pytest

from onepeace.finetune import memory
from onepeace.finetune.auto_recipe import auto_recipe
from onepeace.finetune.split import SplitSummary
from onepeace.plan.dry_run import StepCost

FORMS = {
    (False, 1, False): 100,
    (True, 1, False): 80,
    (True, 4, False): 70,
    (True, 16, False): 60,
    (True, 1, True): 50,
    (True, 4, True): 40,
    (True, 16, True): 30,
}
"""Made-up bytes by the form of a recipe: whether activations are recomputed, parts of a step, whether with LoRA."""


@pytest.fixture
def content(random_folder):
    labels = ["a", "b"]
    summary = SplitSummary("", {"train/image+text": 100}, 100, labels, not_held_out=[], left_out=[])
    return auto_recipe(random_folder, random_folder, random_folder, summary)


@pytest.fixture
def planned_forms(monkeypatch):
    """The forms of which a plan was made, in order."""
    pytest.importorskip("peft")
    forms = []

    def make_plan(recipe):
        form = form_of(recipe)
        forms.append(form)
        memory_of_step = Counter(activations=FORMS[form])
        return SimpleNamespace(step=StepCost(memory_of_step, Counter(), Counter(), 0))

    monkeypatch.setattr(memory, "make_plan", make_plan)
    return forms


def form_of(recipe):
    return (recipe.run.recompute == "blocks", recipe.run.grad_cache_chunks, recipe.lora is not None)


# A plan may fill 80 % of the memory.
@pytest.mark.parametrize(("available", "num_tried"), [(125, 1), (124, 2), (101, 2), (76, 4), (60, 6), (20, 7)])
def test_memory_takes_first_form_that_fits(content, planned_forms, available, num_tried):
    lines = []
    recipe = memory.fitting_recipe(content, [], available, lines.append)

    assert planned_forms == list(FORMS)[:num_tried]
    assert form_of(recipe) == planned_forms[-1]
    (line,) = lines
    assert ("may not fit" in line) == (available == 20)


def test_memory_plans_with_overrides(content, planned_forms, monkeypatch):
    monkeypatch.setitem(FORMS, (False, 1, True), 100)
    recipe = memory.fitting_recipe(content, ["lora.rank=4"], 20, print)

    assert recipe.lora.rank == 4
    assert all(with_lora for _, _, with_lora in planned_forms)
    assert memory.LORA["lora"]["rank"] == 16  # an override changes one recipe


def test_memory_of_recipe_with_lora(content, planned_forms, monkeypatch):
    """There are no adapters to fall back on."""
    monkeypatch.setitem(FORMS, (False, 1, True), 100)
    memory.fitting_recipe({**content, "lora": {"rank": 4}}, [], 20, print)

    assert len(planned_forms) == 4
    assert planned_forms[-1] == (True, 16, True)


def test_memory_unknown(content, planned_forms):
    recipe = memory.fitting_recipe(content, [], available=None, say=print)
    assert form_of(recipe) == (False, 1, False)
    assert planned_forms == []


def test_memory_of_real_plan(content):
    """The recipe has terms that read targets."""
    lines = []
    recipe = memory.fitting_recipe(content, [], 10**12, lines.append)

    assert recipe.run.recompute == "ffn"
    (line,) = lines
    assert line.endswith("of the 1000.0 GB that are available")
