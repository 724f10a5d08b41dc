"""Settings follow the memory there is: what is computed again, in parts or by adapters, in this order."""

from collections import Counter
from types import SimpleNamespace

import pytest
from support.random_model import save_random_model

from onepeace.finetune import memory
from onepeace.finetune.settings import auto_recipe
from onepeace.finetune.split import SplitSummary
from onepeace.plan.dry_run import StepCost


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    model = save_random_model(tmp_path_factory.mktemp("models") / "random")
    return auto_recipe(model, model, model, SplitSummary("", {"train/image+text": 100}, 100, ["a", "b"], [], []))


def test_the_first_form_that_fits_is_taken(content, monkeypatch):
    """Needs are told by the form: 100 bytes, 80 computed again, 70 and 60 in parts, 50, 40 and 30 with adapters."""
    pytest.importorskip("peft")
    needs, said = [], []

    def make_plan(recipe):
        run = recipe.run
        needs.append((run.recompute == "blocks", run.grad_cache_chunks, recipe.lora is not None))
        total = 100 - 20 * needs[-1][0] - {1: 0, 4: 10, 16: 20}[needs[-1][1]] - 30 * needs[-1][2]
        return SimpleNamespace(step=StepCost(Counter(activations=total), Counter(), Counter(), 0))

    monkeypatch.setattr(memory, "make_plan", make_plan)
    forms = [(False, 1, False), (True, 1, False), (True, 4, False), (True, 16, False), (True, 1, True), (True, 4, True),
             (True, 16, True)]  # fmt: skip
    for available, count in ((1000, 1), (101, 2), (76, 4), (60, 6), (20, 7)):
        needs.clear()
        recipe = memory.fitting_recipe(content, ["lora.rank=4"] if available < 60 else [], available, said.append)
        assert needs == (forms[:count] if available >= 60 else [(*form[:2], True) for form in forms])
        assert (recipe.run.recompute == "blocks") == needs[-1][0]
        assert recipe.run.grad_cache_chunks == needs[-1][1]
    assert "it may not fit" in said[-1]
    assert all("it may not fit" not in line for line in said[:-1])
    assert memory.LORA["lora"]["rank"] == 16  # an override changes one recipe


def test_a_plan_of_the_real_recipe(content):
    """A term with targets is planned too, and checkpoints and parts need less."""
    said = []
    recipe = memory.fitting_recipe(content, [], 10**12, said.append)
    assert recipe.run.recompute == "ffn"
    (line,) = said
    assert line.endswith("of the 1000.0 GB that are available")
