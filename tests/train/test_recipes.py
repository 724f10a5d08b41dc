"""Every training recipe there is: it loads, its model has the size it should, and it takes two steps shrunken."""

import math
import re
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from support.fake_gpu import StepChecked, check_first_step
from support.recipe_files import training_recipes
from support.small_shards import write_shards
from support.training import logged, with_slow

from onepeace.config import SIZES, ModelConfig, build, to_yaml
from onepeace.embed.embedder import load
from onepeace.hub.resolve import BUNDLED_NAMES
from onepeace.model import OnePeace
from onepeace.plan import plan
from onepeace.train import teachers, trainer
from onepeace.train.recipe import read_recipe
from onepeace.train.terms import TERMS

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide"
RECIPES = training_recipes()
ELSEWHERE = ("finetune/", "generative/ofa_", "generative/tiny_captions_cider")
HERE = [name for name in RECIPES if not name.startswith(ELSEWHERE)]
"""Those that need neither the released model nor a download; the others: tests/recipes."""
MILLIONS = {"small": 84, "base": 195, "large": 580, "4b": 2767}
"""Parameters of text and one more modality, decoder included; image and audio differ by less than 6 %."""


# Documentation


@pytest.mark.parametrize("kind", TERMS)
def test_every_option_of_term_is_documented(kind):
    guide = (GUIDE / "train.md").read_text()
    chapter = guide.partition("## The objective")[2].partition("\n## ")[0]
    options = {field.name for field in fields(TERMS[kind].Options)}
    words = {kind, *options} - {"term"}

    assert [word for word in sorted(words) if not re.search(rf"`{word}\b", chapter)] == []


# Files


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_reads_and_writes_itself(name, tmp_path):
    recipe = read_recipe(RECIPES[name])

    (tmp_path / "again.yaml").write_text(to_yaml(recipe))

    assert read_recipe(tmp_path / "again.yaml") == recipe


# Sizes


def test_three_modalities_of_largest_size_are_four_billion():
    with torch.device("meta"):
        model = OnePeace(build(ModelConfig, SIZES["4b"], "SIZES"))

    # The paper's 4 B. A bucket matrix and the like, which the released code also stores, are no parameters.
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == pytest.approx(3_926_288_577, rel=1e-4)


COST = re.compile(r"# Cost: ([\d.]+) TFLOP a pair, ([\d.,]+) EFLOP for the schedule \(--plan --processes (\d+)\)\.")


def stated_cost(name):
    """TFLOP a pair, EFLOP for the schedule, and the number of processes."""
    stated = COST.search(RECIPES[name].read_text())
    assert stated, f"{name} has no line of its cost"
    teraflops, exaflops, num_processes = stated.groups()
    return float(teraflops), float(exaflops.replace(",", "")), int(num_processes)


PRETRAINING = re.compile("pretrain/(small|base|large|.*4b)")


@pytest.mark.parametrize("name", list(filter(PRETRAINING.match, RECIPES)))
def test_recipe_has_its_size_and_states_its_cost(name):
    recipe = read_recipe(RECIPES[name])

    model = plan.planned_model(recipe, plan.planned_config(recipe))

    total = sum(parameter.numel() for parameter in model.parameters())
    assert total / 1e6 == pytest.approx(MILLIONS[recipe.model["size"]], rel=0.09)
    assert stated_cost(name)[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain/small_image_text", "pretrain/small_audio_text", "pretrain/image_text_4b"])
def test_stated_cost_is_that_of_plan(name):
    teraflops, exaflops, num_processes = stated_cost(name)
    recipe = read_recipe(RECIPES[name])

    planned = plan.make_plan(recipe, num_processes)

    (flops,) = planned.flops_per_item.values()
    assert flops / 1e12 == pytest.approx(teraflops, rel=0.01)
    assert recipe.schedule.steps * planned.flops_per_step / 1e18 == pytest.approx(exaflops, rel=0.01)


# Runs of shrunken recipes

SHARDS = {"image": "squares.tar", "audio": "tones.tar", "text": "squares.tar"}
SMALL = [
    "model.pretrained=false",
    "evaluate={}",
    "run.batch_size=4",
    "run.workers=0",
    "schedule.steps=2",
    "schedule.warmup_ratio=null",
    "schedule.warmup_steps=1",
]
SMALL_MODEL = [
    "model.dim=32",
    "model.embed_dim=32",
    "model.depth=1",
    "model.num_heads=2",
    "model.ffn_dim=64",
]
SMALL_VOCABULARY = ["tokenizer={vocab_size: 300}"]
EXTENDED_VOCABULARY = ["tokenizer.vocab_size=12010", "model.adapters.text.vocab_size=12010"]
"""A few pieces more than the bundled model has."""
SMALL_DECODER = "model.decoder={dim: 16, depth: 1, num_heads: 2, ffn_dim: 32}"


def small_sources(recipe):
    """One of our shards for each kind of source of the recipe."""
    sources = []
    kinds = {(source.pair, source.targets) for source in recipe.data.train}
    for pair, targets in sorted(kinds):
        shards = SHARDS[next(key for key in pair if key in SHARDS)]
        sources.append(f"{{shards: {shards}, pair: [{', '.join(pair)}], targets: [{', '.join(targets)}]}}")
    return f"data.train=[{', '.join(sources)}]"


def small_media(recipe):
    """Overrides of media and their adapters."""
    modalities = recipe.model.get("modalities", ())
    overrides = [f"data.stem_views.{key}=1" for key in recipe.data.stem_views]
    if "image" in modalities and "from" not in recipe.model:
        overrides.append("processors.image.size=64")
    audio = recipe.model.get("adapters", {}).get("audio")
    if "audio" in modalities and audio:
        overrides.append("model.adapters.audio.pos_groups=4")
        if audio["stem"] == "wave":
            overrides.append("model.adapters.audio.convs=[[16, 10, 5], [16, 8, 8]]")
    return overrides


def stub_teacher(name, modality, output):
    """Replaces networks whose weights may not be on this machine."""
    return lambda items: torch.randn(len(items), 8 if output == "features" else 1000)


class ShrunkenRuns:
    """Runs shrunken recipes, each after the one it starts from, and once."""

    def __init__(self, root, folder):
        self.root = root
        self.folder = folder

    def start_of(self, name, recipe):
        """Overrides of the model that the run starts from; a run that it goes on from is run before."""
        start = recipe.model.get("from")
        if start is None:
            return SMALL_MODEL
        if start in BUNDLED_NAMES:
            return []  # small enough
        return [f"model.from={self.run(f'{Path(name).parent}/{Path(start).name}')}"]  # called like its folder

    def overrides(self, name):
        recipe = read_recipe(RECIPES[name])
        overrides = [
            *SMALL,
            *(EXTENDED_VOCABULARY if recipe.tokenizer.extend else SMALL_VOCABULARY),
            *small_media(recipe),
            *self.start_of(name, recipe),
            small_sources(recipe),
            f"data.root={self.root}",
            f"data.frozen_folder={self.folder / 'stems'}",
            f"run.out={self.folder / Path(name).name}",
        ]
        if recipe.uses_masks:
            overrides.append(SMALL_DECODER)
        return overrides

    def run(self, name, *, only_check=False):
        """Folder of the run; with ``only_check`` it ends after its first step was checked."""
        out = self.folder / Path(name).name
        if (out / "model").exists():
            return out
        recipe = read_recipe(RECIPES[name], self.overrides(name))
        with pytest.MonkeyPatch.context() as patch:
            for library in {*teachers.TEACHERS} - {"onepeace"}:
                patch.setitem(teachers.TEACHERS, library, stub_teacher)
            check_first_step(patch, then_stop=only_check)
            with pytest.raises(StepChecked) if only_check else nullcontext():
                trainer.train(recipe)
        return out


@pytest.fixture(scope="module")
def shrunken(tmp_path_factory):
    root = write_shards(tmp_path_factory.mktemp("shards"), 1, 1)
    return ShrunkenRuns(root, tmp_path_factory.mktemp("runs"))


# Shrunken, all sizes are the same model, studies are like what they vary, and the others like laptop or quick_stems.
SLOW = re.compile(
    r"/(small|base|large)_|ablation/|/(quick|own_pairs|distil_small|tiny(_captions|_longer|_sounds|_tuned)?)$"
)
LIKE_ANOTHER = re.compile(r"/(small|base|large)_|ablation/|tiny_(longer|sounds|tuned)")
"""Recipes whose step is that of another one here."""


@pytest.mark.parametrize("name", with_slow(filter(SLOW.search, HERE), LIKE_ANOTHER.search))
def test_step_of_recipe_waits_for_no_gpu(name, shrunken):
    """Only recipes whose run is slow; the steps of the others are checked in their run."""
    shrunken.run(name, only_check=True)


@pytest.mark.parametrize("name", with_slow(HERE, SLOW.search))
def test_recipe_takes_two_steps_when_shrunken(name, shrunken):
    recipe = read_recipe(RECIPES[name])

    out = shrunken.run(name)

    line = logged(out)[-1]
    assert line["step"] == 2
    for options in recipe.terms:
        losses = [value for key, value in line.items() if key.startswith(options.name)]
        assert losses, options.name
        assert all(math.isfinite(loss) for loss in losses)
    modalities = recipe.model.get("modalities", ("text", "image", "audio"))
    assert set(load(out / "model").modalities) == set(modalities)
