"""Every training recipe there is: it loads, its model has the size it should, and it takes two steps shrunken."""

import math
import re
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from support.fake_gpu import StepChecked, check_first_step
from support.small_shards import write_shards

from onepeace.config import SIZES, ModelConfig, build, read_yaml, to_yaml
from onepeace.embed.embedder import load
from onepeace.evaluate.protocols import PROTOCOLS
from onepeace.hub.resolve import BUNDLED_NAMES
from onepeace.model import OnePeace
from onepeace.plan import plan
from onepeace.train import loop, teachers
from onepeace.train.log import read_log
from onepeace.train.recipe import read_recipe
from onepeace.train.terms.registry import TERMS

ROOT = Path(__file__).resolve().parents[2] / "recipes"
DOCS = ROOT.parent / "docs"


def trains(path):
    content = read_yaml(path)
    base = read_yaml(path.parent / content["base"]) if "base" in content else {}
    return "objective" in {**base, **content} and "variants" not in content  # those are studies


RECIPES = {
    path.relative_to(ROOT).with_suffix("").as_posix(): path for path in sorted(ROOT.rglob("*.yaml")) if trains(path)
}
ELSEWHERE = ("finetune/", "generative/ofa_", "generative/tiny_captions_cider")
HERE = [name for name in RECIPES if not name.startswith(ELSEWHERE)]
"""Those that need neither the released model nor a download; the others: tests/recipes."""
MILLIONS = {"small": 84, "base": 195, "large": 580, "4b": 2767}
"""Parameters of text and one more modality, decoder included; image and audio differ by less than 6 %."""
SHARDS = {"image": "squares.tar", "audio": "tones.tar", "text": "squares.tar"}
SMALL = {"dim": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "ffn_dim": 64}
DECODER = {"dim": 16, "depth": 1, "num_heads": 2, "ffn_dim": 32}


def test_every_protocol_of_an_evaluation_is_named():
    chapter = (DOCS / "guide" / "extend.md").read_text().partition("**An evaluation protocol**")[2]
    assert [name for name in PROTOCOLS if f"`{name}`" not in chapter] == []


def test_every_option_of_a_term_is_named():
    chapter = (DOCS / "guide" / "train.md").read_text().partition("## The objective")[2].partition("\n## ")[0]
    options = {(kind, one.name) for kind, term in TERMS.items() for one in fields(term.Options) if one.name != "term"}
    assert [option for option in sorted(options) if not all(re.search(rf"`{word}\b", chapter) for word in option)] == []


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_reads_and_writes_itself(name, tmp_path):
    recipe = read_recipe(RECIPES[name])
    (tmp_path / "again.yaml").write_text(to_yaml(recipe))
    assert read_recipe(tmp_path / "again.yaml") == recipe


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n.startswith("ablation/") else []) for n in HERE]
)
def test_full_model_is_built_and_frozen_without_memory(name):
    recipe = read_recipe(RECIPES[name])
    if recipe.model.get("from") == "runs/tiny":
        recipe.model["from"] = "tiny"  # what this run became
    if "from" in recipe.model and "size" not in recipe.model:
        recipe.model["size"] = "tiny"
    model = plan.planned_model(recipe, plan.planned_config(recipe))
    assert all(parameter.is_meta for parameter in model.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (trained < total) == bool(recipe.freeze)
    if recipe.model["size"] in MILLIONS and len(recipe.model["modalities"]) == 2:
        assert total / 1e6 == pytest.approx(MILLIONS[recipe.model["size"]], rel=0.09)


def test_three_modalities_of_the_largest_size_are_four_billion():
    with torch.device("meta"):
        model = OnePeace(build(ModelConfig, SIZES["4b"], "SIZES"))
    # The paper's 4 B. A bucket matrix and the like, which the released code also stores, are no parameters.
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(3_926_288_577, rel=1e-4)


COST = re.compile(r"# Cost: ([\d.]+) TFLOP a pair, ([\d.,]+) EFLOP for the schedule \(--plan --processes (\d+)\)\.")


def stated_cost(name):
    stated = COST.search(RECIPES[name].read_text())
    assert stated, f"{name} has no line of its cost"
    return stated


@pytest.mark.parametrize("name", [name for name in RECIPES if re.search("pretrain/(small|base|large|.*4b)", name)])
def test_recipe_states_its_cost(name):
    assert float(stated_cost(name)[1]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrain/small_image_text", "pretrain/small_audio_text", "pretrain/image_text_4b"])
def test_stated_cost_is_that_of_the_plan(name):
    stated = stated_cost(name)
    wanted = read_recipe(RECIPES[name])
    found = plan.make_plan(wanted, int(stated[3]))
    ((pair, flops),) = found.flops_per_item.items()
    assert flops / 1e12 == pytest.approx(float(stated[1]), rel=0.01), pair
    assert wanted.schedule.steps * found.flops_per_step / 1e18 == pytest.approx(
        float(stated[2].replace(",", "")), rel=0.01
    )


@pytest.fixture(scope="module")
def shrunken(tmp_path_factory):
    """Runs a recipe shrunken, after the one it starts from; each once."""
    root = write_shards(tmp_path_factory.mktemp("shards"), 1, 1)
    runs = tmp_path_factory.mktemp("runs")

    def run(name, only_check=False):
        """Folder of the run; with ``only_check`` it ends after its first step was checked."""
        out = runs / Path(name).name
        if (out / "model").exists():
            return out
        wanted = read_recipe(RECIPES[name])
        pairs = sorted({(source.pair, source.targets) for source in wanted.data.train})
        sources = [
            f"{{shards: {SHARDS[next(key for key in pair if key in SHARDS)]}, pair: [{', '.join(pair)}], "
            f"targets: [{', '.join(targets)}]}}"
            for pair, targets in pairs
        ]
        small = [f"data.root={root}", f"data.train=[{', '.join(sources)}]", "tokenizer={vocab_size: 300}",
                 "model.pretrained=false", "evaluate={}", "run.batch_size=4", "run.workers=0",
                 "schedule.steps=2", "schedule.warmup_ratio=null",
                 *(f"data.stem_views.{key}=1" for key in wanted.data.stem_views),
                 "schedule.warmup_steps=1", f"run.out={out}", f"data.frozen_folder={runs / 'stems'}"]  # fmt: skip
        if wanted.uses_masks:
            small += [f"model.decoder={DECODER}"]
        if wanted.model.get("from") in BUNDLED_NAMES:
            pass  # small enough
        elif "from" in wanted.model:
            # Its start is named by the folder of its run.
            start = f"{Path(name).parent}/{Path(wanted.model['from']).name}"
            small += [f"model.from={run(start)}"]
        else:
            small += [f"model.{key}={value}" for key, value in SMALL.items()]
        if "image" in wanted.model.get("modalities", ()) and "from" not in wanted.model:
            small += ["processors.image.size=64"]
        audio = wanted.model.get("adapters", {}).get("audio")
        if "audio" in wanted.model.get("modalities", ()) and audio:
            small += ["model.adapters.audio.pos_groups=4"]
            if audio["stem"] == "wave":
                small += ["model.adapters.audio.convs=[[16, 10, 5], [16, 8, 8]]"]
        with pytest.MonkeyPatch.context() as patch:
            for library in teachers.TEACHERS:
                patch.setitem(teachers.TEACHERS, library, stub_teacher)
            check_first_step(patch, then_stop=only_check)
            with pytest.raises(StepChecked) if only_check else nullcontext():
                loop.train(read_recipe(RECIPES[name], small))
        return out

    return run


def stub_teacher(name, modality, output):
    """In place of networks whose weights may not be here."""
    return lambda items: torch.randn(len(items), 8 if output == "features" else 1000)


# Shrunken, all sizes are the same model, studies are like what they vary, and the others like laptop or quick_stems.
SLOW = re.compile(r"/(small|base|large)_|ablation/(?!base$)|/(quick|own_pairs|distil_small|tiny(_captions|_longer)?)$")


@pytest.mark.parametrize("name", [name for name in HERE if SLOW.search(name)])
def test_step_of_recipe_waits_for_no_gpu(name, shrunken):
    """Those whose run is slow; the others' steps are checked in their run."""
    shrunken(name, only_check=True)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if SLOW.search(n) else []) for n in HERE])
def test_recipe_takes_two_steps_when_shrunken(name, shrunken):
    wanted = read_recipe(RECIPES[name])
    out = shrunken(name)
    lines = read_log(out / "log.jsonl")
    assert lines[-1]["step"] == 2
    for options in wanted.terms:
        losses = [value for key, value in lines[-1].items() if key.startswith(options.name)]
        assert losses, options.name
        assert all(math.isfinite(loss) for loss in losses)
    assert set(load(out / "model").modalities) == set(wanted.model.get("modalities", ("text", "image", "audio")))
