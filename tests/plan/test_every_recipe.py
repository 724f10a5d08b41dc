"""Every training recipe can be planned, but for those that make their inputs of words; shrunken in depth and batch."""

import re

import pytest
from support.recipe_files import training_recipes
from support.training import with_slow

from onepeace.errors import UserError
from onepeace.hub.resolve import BUNDLED_NAMES
from onepeace.plan.plan import make_plan
from onepeace.train.recipe import read_recipe

RECIPES = training_recipes()
WORDS = ("generative/ofa_", "generative/tiny_captions_cider")
"""Recipes with terms that make inputs of sentences, with the tokenizer of the data."""
SHARDED = ["pretrain/image_text_4b", "pretrain/audio_text_4b"]
QUICK = re.compile(
    "pretrain/(image_text_4b|distil_small|quick_stems|tiny)|"
    "finetune/(avqa|coco_detection|coco_retrieval|kinetics|nlvr2|refcoco)"
)
"""Recipes of which the others differ by their size, their data or the loss of a head."""


def shrunken(name):
    path = RECIPES[name]
    overrides = ["run.batch_size=4"]
    model = read_recipe(path).model
    start = model.get("from", "")
    if start == "runs/tiny":
        overrides.append("model.from=tiny")  # what this run became
    elif start not in BUNDLED_NAMES:
        overrides.append("model.depth=1")
        if start and "size" not in model:
            overrides.append("model.size=4b" if start.startswith("one-peace") else "model.size=tiny")
    for head, options in model.get("heads", {}).items():
        if isinstance(options.get("labels"), str):
            overrides.append(f"model.heads.{head}.labels=[a, b]")
    if name == "ablation/synthetic_base":
        overrides.append("processors.text.max_tokens=20")  # its captions are shorter than its model's positions
    return read_recipe(path, overrides)


PLANNABLE = [name for name in RECIPES if not name.startswith(WORDS)]


@pytest.mark.parametrize("name", with_slow(PLANNABLE, lambda name: not QUICK.fullmatch(name)))
def test_recipe_is_planned(name):
    recipe = shrunken(name)
    plan = make_plan(recipe, processes=2)
    assert min(plan.memory.values()) >= 0
    assert min(plan.flops_per_item.values()) > 0
    assert (recipe.run.parallel == "fsdp") == (name in SHARDED) == ("gathered weights" in plan.memory)


def test_inputs_made_of_words_cannot_be_planned():
    with pytest.raises(UserError, match="words"):
        make_plan(shrunken("generative/tiny_captions_cider"))


@pytest.mark.slow
def test_whole_recipe_of_512_processes():
    """The recipe is not shrunk; this takes about a minute."""
    plan = make_plan(read_recipe(RECIPES["pretrain/image_text_4b"]), processes=512)
    assert plan.peak < plan.card.memory
