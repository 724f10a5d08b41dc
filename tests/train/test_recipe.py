import re
from pathlib import Path

import pytest
import yaml

from onepeace.config import read_yaml, to_yaml
from onepeace.errors import UserError
from onepeace.train.recipe import read_recipe
from onepeace.train.resume import check_same

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


def test_fields_are_typed(full):
    recipe = read_recipe(full)
    assert recipe.optim.lr == 1e-3  # YAML reads 1e-3 as text
    assert recipe.optim.grad_clip is None
    assert (recipe.schedule.steps, recipe.schedule.warmup) == (20000, 2000)
    assert recipe.data.train[0].pair == ("image", "text")
    assert recipe.mask["audio"].unimodal is None
    assert (recipe.batch_size("image+text"), recipe.batch_size("audio+text")) == (256, 64)
    assert recipe.freeze == {"except": ("adapters.audio.*",)}
    with pytest.raises(AttributeError):
        recipe.seed = 4


def test_overrides_replace_fields(full):
    overrides = ["run.batch_size=8", "optim.lr=2e-4", "data.train.1.weight=3", "data.root=/x", "seed=8", "seed=9",
                 "objective.denoising/text.weight=0.1", "model.new.deep=[1, 2]"]  # fmt: skip
    recipe = read_recipe(full, overrides)
    assert read_recipe(full, ["evaluate=null"]).evaluate is None
    assert recipe.batch_size("audio+text") == 8
    assert recipe.optim.lr == 2e-4
    assert recipe.data.train[1].weight == 3
    assert recipe.data.root == "/x"
    assert [(term.name, term.weight) for term in recipe.terms] == [("contrastive", 1.0), ("denoising/text", 0.1)]
    assert recipe.model["new"] == {"deep": [1, 2]}
    assert recipe.seed == 9


def test_an_evaluation_is_found_from_the_working_folder_and_from_above_the_recipe(full, monkeypatch):
    folder = full.parent / "recipes" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text(FULL)
    evaluation = full.parent / "evaluate.yaml"
    assert read_recipe(folder / "own.yaml").evaluate.recipe == "evaluate.yaml"
    evaluation.write_text("sets: {}")
    assert read_recipe(folder / "own.yaml").evaluate.recipe == str(evaluation)
    monkeypatch.chdir(full.parent)
    assert read_recipe(folder / "own.yaml").evaluate.recipe == "evaluate.yaml"


def test_base_is_merged_field_by_field(full):
    child = full.parent / "child.yaml"
    child.write_text(
        "base: full.yaml\noptim: {lr: 7.0e-4}\nobjective: [{term: denoising, on: [image], weight: 2}]\n"
        "mask: {audio: null}\ndata: {token_dropout: {image: null}, train: [{shards: a.tar, pair: [image, text]}]}\n"
    )
    recipe = read_recipe(child)
    assert recipe.optim.lr == 7e-4
    assert recipe.optim.grad_clip is None  # of the base
    assert [(term.name, term.weight) for term in recipe.terms] == [("denoising/image", 2)]
    assert set(recipe.mask) == {"text"}
    assert recipe.data.token_dropout == {}
    assert len(recipe.data.train) == 1
    grandchild = full.parent / "grandchild.yaml"
    grandchild.write_text("base: child.yaml\n")
    with pytest.raises(UserError, match=r"child\.yaml has a base itself"):
        read_recipe(grandchild)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", r"full\.yaml: optim\.lrr is not a field; did you mean optim\.lr\?"),
        ("data.train.0.wieght=1", r"data\.train\[0\]\.wieght is not a field; did you mean data\.train\[0\]\.weight\?"),
        ("mask.text.unit=words", "unit 'words' is not known; known: word, patch, span"),
        ("run.batch_size={image+text: 4}", r"run\.batch_size has no audio\+text"),
        ("run.batch_size=0", r"run\.batch_size is 0; it should be 1 or more"),
        (
            "data.train=[{shards: a, pair: [image, text], targets: [label]}, {shards: b, pair: [image, text]}]",
            r"sources of image\+text have targets",
        ),
        ("data.train.0.pair=[image, image]", "should be different modalities"),
        ("data.train=[]", r"data\.train is empty"),
        (
            'data.train=[{shards: "a/*.tar", pair: [audio, text], targets: [label]}]',
            r"data\.augment mixes two items of audio\+text, and a mixed item has no label",
        ),
        ("data.augment.image.zoom=2", r"zoom is not a field"),
        ("data.templates.image=[a photo]", r"'a photo' should have one \{\}"),
        ("data.token_dropout.image=1.5", r"data\.token_dropout\.image is 1\.5"),
        ("optim.betas=[0.9]", r"optim\.betas should be 2 values"),
        ("optim.name=muonn", r"optim\.name 'muonn' is not known; did you mean muon\?"),
        ("optim={name: lion, eps: 1e-8}", r"optim\.eps is not an option of lion; it has params, lr, betas"),
        ("optim={name: muon, options: {momentun: 0.9}}", r"optim\.options\.momentun is not an option of muon"),
        ("optim={name: muon, options: {lr: 0.9}}", r"optim\.options\.lr is not an option of muon"),
        ("optim.options.amsgrad=true", r"optim\.options\.amsgrad: adamw has no further options"),
        ("schedule.decay_ratio=0.1", r"schedule\.decay_ratio is for the schedule wsd, and this is cosine"),
        ("schedule={steps: 10, name: wsd, decay_ratio: 0.1, decay_steps: 1}", "decay_ratio say the same"),
        ("schedule={steps: 10, name: wsd, warmup_steps: 6, decay_steps: 5}", "a warm-up of 6 steps and a decay of 5"),
        ("schedule={steps: 10, warmup_steps: 11}", r"schedule\.warmup_steps 11 is more than schedule\.steps 10"),
        ("run.shard=4", r"run\.shard 4 is for run\.parallel fsdp, and this is ddp"),
        ("run.keep_gathered=false", r"run\.keep_gathered is for run\.parallel fsdp, and this is ddp"),
        ("optim.lr=-1e-3", r"optim\.lr is -0\.001; it should be 0 or more"),
        ("run.ema=1", r"run\.ema is 1\.0; it should be from 0 to below 1"),
        ("objective=[]", "objective is empty"),
        ("objective=[{term: contrastiv}]", r"objective\.0\.term 'contrastiv' .* contrastive"),
        ("objective=[{term: contrastive}, {term: contrastive}]", "two terms of the name contrastive"),
        ("objective.contrastiv.weight=1", r"objective\.contrastiv.* contrastive"),
        ("objective.contrastive.name=a.b", "has a dot"),
        ("objective.contrastive.weigth=1", r"objective\.contrastive: weigth .* weight"),
        ("objective.contrastive.weight=much", r"objective\.contrastive: weight should be float, not 'much'"),
        ("objective.contrastive.weight=.nan", "weight is nan; it should be a finite number"),
        ("objective=[{term: distillation, on: [image]}]", r"objective\.distillation: teacher is missing"),
        ("evaluate={sets: [flickr8k]}", r"evaluate\.recipe is missing"),
        ("data.train.7.weight=1", "7 is neither an index below 2"),
        ("optim.lr.x=1", "lr is a value and has no fields"),
        ("optim.lr", "is not an override; write it as a.b=value"),
        ("optim.lr=[", "the value is not YAML"),
        pytest.param("optim.lr=" + "[" * 5000, "the value is not YAML", id="nested"),
    ],
)
def test_mistakes_are_one_line(full, override, message):
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(full, [override])
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_refused_with_its_line(full):
    anchors = "&a {out: x, seed: 1}\nb: &b {<<: *a, out: y}\nc: {<<: *b, out: z}\n"
    full.write_text(f"a: {anchors}")
    assert read_yaml(full)["c"] == {"out": "z", "seed": 1}  # a merged key may be replaced
    full.write_text(f"{FULL}optim: {{weight_decay: 0.1}}\n")
    with pytest.raises(UserError, match=rf"full\.yaml: line {FULL.count(chr(10)) + 1}: .*'optim'"):
        read_recipe(full)


def test_a_term_goes_by_its_name_and_null_takes_it_out(full):
    recipe = read_recipe(full, ["objective.denoising/text.name=words", "objective.words.weight=2", "objective.0=null"])
    assert [(term.name, term.on, term.weight) for term in recipe.terms] == [("words", ("text",), 2.0)]


@pytest.mark.parametrize(
    "override",
    ["run.batch_size=8", "optim.lr=2e-4", "seed=4", "data.token_dropout.image=0.25", "optim.groups.x={lr_scale: 0.1}",
     "objective.contrastive.weight=2"],
)  # fmt: skip
def test_a_run_does_not_go_on_under_a_recipe_that_trains_otherwise(full, override):
    saved = to_yaml(read_recipe(full))
    name = re.escape(".".join(override.partition("=")[0].split(".")[:2]).replace("objective.contrastive", "objective"))
    with pytest.raises(UserError, match=f"holds a run with another {name}, .* and not .*; give run.out") as caught:
        check_same(saved, read_recipe(full, [override]), Path("runs/x"), step=5)
    assert "\n" not in str(caught.value)


def test_a_run_goes_on_although_what_does_not_train_is_another(full):
    changes = [
        "schedule.steps=3e4",
        "run.out=y",
        "run.save_every=3",
        "run.workers=3",
        "run.parallel=fsdp",
        "data.root=/y",
        "evaluate={}",
    ]
    check_same(to_yaml(read_recipe(full)), read_recipe(full, changes), Path("runs/x"), step=5)


def test_resume_with_fewer_steps_than_were_taken_is_one_line(full):
    recipe = read_recipe(full, ["schedule.steps=100"])
    check_same(to_yaml(read_recipe(full)), recipe, Path("runs/x"), step=100)
    with pytest.raises(UserError, match=r"its checkpoint is of step 101, and schedule\.steps is 100; raise it"):
        check_same(to_yaml(read_recipe(full)), recipe, Path("runs/x"), step=101)


def test_a_run_of_an_older_version_goes_on(full):
    old = yaml.safe_load(to_yaml(read_recipe(full)))
    old["data"]["valid"] = []  # a field that is gone
    del old["optim"]["groups"], old["run"]["max_bad_steps"], old["objective"][0]["multi_positive"]
    check_same(yaml.safe_dump(old), read_recipe(full), Path("runs/x"), step=5)


def test_missing_recipe_is_named_once(tmp_path):
    with pytest.raises(UserError) as refused:
        read_recipe(tmp_path / "nope.yaml")
    assert str(refused.value).count("nope.yaml") == 1
