import re
from pathlib import Path

import pytest
import yaml

from onepeace.config import read_yaml, to_yaml
from onepeace.errors import UserError
from onepeace.train.recipe import check_same, read_recipe

FULL = """
seed: 3
model: {size: tiny, drop_path: 0.1}
processors: {image: {size: 96}}
tokenizer: {vocab_size: 4000}
data:
  root: ${ONEPEACE_DATA}
  train:
    - {shards: "image/*.tar", pair: [image, text], weight: 0.5}
    - {shards: "audio/*.tar", pair: [audio, text]}
  templates: {image: ["a photo of a {}"]}
  augment: {image: {crop_scale: [0.5, 1.0], flip: true}, audio: {gain_db: 6, mix: 0.1}}
  token_dropout: {image: 0.5}
mask: {text: {unimodal: 0.15, joint: 0.4, unit: word}, audio: {joint: 0.45, unit: span}}
objective: [{term: contrastive, weight: 1.0}, {term: denoising, on: [text], weight: 0.5, scale: 2.5}]
freeze: {except: ["adapters.audio.*"]}
optim: {lr: 1e-3, grad_clip: null}
schedule: {steps: 2e4, warmup_ratio: 0.1}
run: {out: runs/x, batch_size: {image+text: 256, audio+text: 64}}
evaluate: {recipe: evaluate.yaml}
"""


@pytest.fixture
def full(tmp_path):
    path = tmp_path / "full.yaml"
    path.write_text(FULL)
    return path


def weights(recipe):
    return {term.name: term.weight for term in recipe.terms}


def test_fields_are_typed(full):
    recipe = read_recipe(full)

    assert recipe.optim.lr == 1e-3  # YAML reads 1e-3 as text
    assert recipe.optim.grad_clip is None
    assert recipe.schedule.steps == 20000
    assert recipe.schedule.warmup == 2000
    assert recipe.data.train[0].pair == ("image", "text")
    assert recipe.mask["audio"].unimodal is None
    assert recipe.batch_size("image+text") == 256
    assert recipe.batch_size("audio+text") == 64
    assert recipe.freeze == {"except": ("adapters.audio.*",)}


def test_overrides_replace_fields(full):
    overrides = [
        "run.batch_size=8",
        "optim.lr=2e-4",
        "data.train.1.weight=3",
        "data.root=/x",
        "seed=8",
        "seed=9",
        "objective.denoising/text.weight=0.1",
        "model.new.deep=[1, 2]",
        "evaluate=null",
    ]

    recipe = read_recipe(full, overrides)

    assert recipe.batch_size("audio+text") == 8
    assert recipe.optim.lr == 2e-4
    assert recipe.data.train[1].weight == 3
    assert recipe.data.root == "/x"
    assert weights(recipe) == {"contrastive": 1.0, "denoising/text": 0.1}
    assert recipe.model["new"] == {"deep": [1, 2]}
    assert recipe.seed == 9
    assert recipe.evaluate is None


def test_override_by_name_of_term(full):
    recipe = read_recipe(full, ["objective.denoising/text.name=words", "objective.words.weight=2", "objective.0=null"])

    (term,) = recipe.terms
    assert term.on == ("text",)
    assert weights(recipe) == {"words": 2.0}


def test_evaluation_is_looked_for_above_recipe(full, monkeypatch):
    folder = full.parent / "recipes" / "pretrain"
    folder.mkdir(parents=True)
    path = folder / "own.yaml"
    path.write_text(FULL)
    evaluation = full.parent / "evaluate.yaml"
    assert read_recipe(path).evaluate.recipe == "evaluate.yaml"

    evaluation.write_text("sets: {}")
    assert read_recipe(path).evaluate.recipe == str(evaluation)

    monkeypatch.chdir(full.parent)  # where it is found as it is
    assert read_recipe(path).evaluate.recipe == "evaluate.yaml"


# The base

CHILD = """
base: full.yaml
optim: {lr: 7.0e-4}
objective: [{term: denoising, on: [image], weight: 2}]
mask: {audio: null}
data: {token_dropout: {image: null}, train: [{shards: a.tar, pair: [image, text]}]}
"""


@pytest.fixture
def child(full):
    path = full.parent / "child.yaml"
    path.write_text(CHILD)
    return path


def test_base_is_merged_field_by_field(child):
    recipe = read_recipe(child)

    assert recipe.optim.lr == 7e-4
    assert recipe.optim.grad_clip is None  # of the base
    assert weights(recipe) == {"denoising/image": 2}
    assert set(recipe.mask) == {"text"}
    assert recipe.data.token_dropout == {}
    assert len(recipe.data.train) == 1


# Mistakes


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"full\.yaml: optim\.lrr .* optim\.lr\?"),
        ("mask.text.unit=words", "'words' .* word, patch, span"),
        ("run.batch_size={image+text: 4}", r"run\.batch_size has no audio\+text"),
        (
            "data.train=[{shards: a, pair: [image, text], targets: [label]}, {shards: b, pair: [image, text]}]",
            r"sources of image\+text have targets",
        ),
        (
            'data.train=[{shards: "a/*.tar", pair: [audio, text], targets: [label]}]',
            r"data\.augment mixes .* audio\+text",
        ),
        ("data.token_dropout.image=1.5", r"data\.token_dropout\.image is 1\.5"),
        ("optim.name=muonn", r"optim\.name 'muonn' .* muon\?"),
        ("optim={name: lion, eps: 1e-8}", r"optim\.eps .* lion; it has params, lr, betas"),
        ("optim={name: muon, options: {momentun: 0.9}}", r"optim\.options\.momentun .* muon"),
        ("schedule.decay_ratio=0.1", r"schedule\.decay_ratio .* wsd, .* cosine"),
        ("schedule={steps: 10, name: wsd, warmup_steps: 6, decay_ratio: 0.5}", "warm-up of 6 steps and a decay of 5"),
        ("run.shard=4", r"run\.shard 4 .* fsdp, .* ddp"),
        ("optim.lr=-1e-3", r"optim\.lr is -0\.001"),
        ("objective=[{term: contrastiv}]", r"objective\.0\.term 'contrastiv' .* contrastive"),
        ("objective=[{term: contrastive}, {term: contrastive}]", "two terms .* contrastive"),
        ("objective.contrastiv.weight=1", r"objective\.contrastiv.* contrastive"),
        ("objective.contrastive.name=a.b", "contains a dot"),
        ("objective=[{term: distillation, on: [image]}]", r"objective\.distillation: teacher is missing"),
        ("data.train.7.weight=1", "7 is neither an index below 2"),
        ("optim.lr=[", "not YAML"),
        pytest.param("optim.lr=" + "[" * 5000, "not YAML", id="nested"),
    ],
)
def test_mistakes_in_overrides_are_one_line(full, override, message):
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(full, [override])
    assert "\n" not in str(caught.value)


def test_key_given_twice_is_refused_with_its_line(full):
    full.write_text(f"{FULL}optim: {{weight_decay: 0.1}}\n")
    line = FULL.count("\n") + 1

    with pytest.raises(UserError, match=rf"full\.yaml: line {line}: .*'optim'"):
        read_recipe(full)


def test_merged_key_may_be_replaced(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("a: &a {out: x, seed: 1}\nb: &b {<<: *a, out: y}\nc: {<<: *b, out: z}\n")

    assert read_yaml(path)["c"] == {"out": "z", "seed": 1}


# Resuming


def check_resume(full, *overrides, step=5):
    """Raises unless a run of the recipe may be resumed with these overrides."""
    saved = to_yaml(read_recipe(full))
    check_same(saved, read_recipe(full, list(overrides)), Path("runs/x"), step)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("run.batch_size=8", "run.batch_size"),
        ("optim.lr=2e-4", "optim.lr"),
        ("seed=4", "seed"),
        ("data.token_dropout.image=0.25", "data.token_dropout"),
        ("optim.groups.x={lr_scale: 0.1}", "optim.groups"),
        ("objective.contrastive.weight=2", "objective"),
    ],
)
def test_resume_with_recipe_that_trains_otherwise(full, override, field):
    with pytest.raises(UserError, match=rf"runs/x .*another {re.escape(field)}: .*; give run\.out") as caught:
        check_resume(full, override)
    assert "\n" not in str(caught.value)


def test_resume_with_other_fields_that_do_not_train(full):
    check_resume(
        full,
        "schedule.steps=3e4",
        "run.out=y",
        "run.save_every=3",
        "run.workers=3",
        "run.parallel=fsdp",
        "data.root=/y",
        "evaluate={}",
    )


def test_resume_with_fewer_steps_than_were_taken(full):
    check_resume(full, "schedule.steps=100", step=100)
    with pytest.raises(UserError, match=r"step 101, .* schedule\.steps is 100"):
        check_resume(full, "schedule.steps=100", step=101)


def test_resume_of_older_version(full):
    """Fields that only one of the two versions has are not compared; others are."""
    saved = yaml.safe_load(to_yaml(read_recipe(full)))
    saved["data"]["valid"] = []  # a field that is gone
    del saved["optim"]["groups"]
    del saved["run"]["max_padding"]
    del saved["objective"][0]["multi_positive"]

    check_same(yaml.safe_dump(saved), read_recipe(full), Path("runs/x"), step=5)
    with pytest.raises(UserError, match="another optim"):
        check_same(yaml.safe_dump(saved), read_recipe(full, ["optim.lr=2e-4"]), Path("runs/x"), step=5)
