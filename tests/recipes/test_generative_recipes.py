"""Every recipe of OFA on made-up files in the official layout: it lowers its loss, saves, loads and answers."""

import json
from pathlib import Path

import pytest
import torch
from support.downloads import DOWNLOADS, fill
from support.fake_gpu import StepChecked, check_first_step
from support.finetune_downloads import FINETUNE
from support.generative import save_trainable_ofa
from support.layouts import layout_file
from support.random_model import save_random_model
from support.training import CAPTION_HEAD, assert_falls, logged, series, with_slow

import onepeace
from onepeace.cli import main
from onepeace.generative.captions import CiderReward
from onepeace.generative.tasks import Box, Choice, Objects, Text
from onepeace.hub.weights import read_state
from onepeace.train.recipe import read_recipe
from onepeace.train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "generative"
RECIPES = sorted(path.stem for path in FOLDER.glob("ofa_*.yaml") if path.stem != "ofa_base")
LAYOUTS = {
    "ofa_caption": ["coco_karpathy"],
    "ofa_caption_cider": ["coco_karpathy"],
    "ofa_vqav2": ["vqav2"],
    "ofa_refcoco": ["refcoco"],
    "ofa_snli_ve": ["snli_ve"],
    "ofa_imagenet": ["imagenet"],
    "ofa_infilling": ["coco"],
    "ofa_pretrain": ["coco", "vqav2", "refcoco", "coco_detection"],
}
QUICK = {"ofa_caption"}
"""The others differ in their data and kind of answer, which tests/generative/test_generation.py tries."""
WAITS_FOR_GPU = {"ofa_caption_cider"}
"""Its captions are searched for and compared as words, on the CPU."""
SMALL = [
    "run.workers=0",
    "run.precision=float32",
    "run.batch_size=3",
    "run.grad_cache_chunks=1",
    "run.log_every=1",
    "run.recompute=ffn",
    "run.save_minutes=0",
    "schedule.steps=4",
    "schedule.warmup_ratio=0.1",
    "schedule.warmup_steps=null",
    "optim.lr=5e-3",
    "model.dropout=0.0",
    "model.drop_path=0.0",
    "processors.image.size=64",
    "data.broken_limit=1.0",
]
SMALL_PRETRAINING = ["model.size=null", "tokenizer.vocab_size=8000"]
SMALL_PRETRAINING += [
    f"objective.generation/{task}.patches=9" for task in ("caption", "match", "answer", "ground", "describe")
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_trainable_ofa(tmp_path_factory.mktemp("models") / "ofa")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Makes shards of layouts, once."""
    folder = tmp_path_factory.mktemp("downloads")

    def shards(*layouts):
        for layout in layouts:
            download = folder / layout
            if not download.exists():
                download.mkdir()
                fill(download, {**DOWNLOADS, **FINETUNE}[layout]())
                main(["shards", "--layout", layout_file(layout), str(download), "-o", str(folder / "data")])
        return folder / "data"

    return shards


@pytest.fixture(scope="module")
def small_recipe(start, prepared):
    """Reads a recipe, shrunk, on shards of a made-up download."""

    def read(name, out, *overrides, model=start):
        places = [f"model.from={model}", f"data.root={prepared(*LAYOUTS[name])}", f"run.out={out}"]
        small = [*SMALL, *SMALL_PRETRAINING] if name == "ofa_pretrain" else SMALL
        return read_recipe(FOLDER / f"{name}.yaml", [*small, *places, *overrides])

    return read


@pytest.fixture
def picture(samples):
    return samples / "images" / "cat.jpg"


def answers_of(name, generator, picture):
    """The answers to one question of the kind that a model was trained for, and their type."""
    if name in ("ofa_caption", "ofa_caption_cider"):
        return generator.caption([picture]), Text
    if name == "ofa_vqav2":
        return generator.answer([picture], "what is this?"), Choice
    if name == "ofa_refcoco":
        return generator.ground([picture], "the dog"), Box
    if name == "ofa_snli_ve":
        question = {"image": picture, "text": "a cat", "premise": "a dog"}
        return generator.ask("entail_premise", [question]), Choice
    if name == "ofa_imagenet":
        return generator.ask("classify", [{"image": picture}]), Choice
    if name == "ofa_infilling":
        return generator.ask("infill", [{"text": "a <mask> dog"}]), Text
    return generator.ask("detect", [{"image": picture}]), Objects


def test_step_of_choices_waits_for_no_gpu(small_recipe, tmp_path, monkeypatch):
    """The steps of the other recipes are checked in their run."""
    check_first_step(monkeypatch, then_stop=True)
    with pytest.raises(StepChecked):
        train(small_recipe("ofa_vqav2", tmp_path))


@pytest.mark.parametrize("name", with_slow(RECIPES, lambda name: name not in QUICK))
def test_ofa_recipe_learns_and_answers(small_recipe, tmp_path, monkeypatch, picture, name):
    recipe = small_recipe(name, tmp_path)
    if name not in WAITS_FOR_GPU:
        check_first_step(monkeypatch)

    folder = train(recipe)

    lines = logged(tmp_path)
    assert {options.name for options in recipe.terms} <= set(lines[-1])
    if name == "ofa_caption_cider":
        assert 0 <= lines[0]["self_critical/reward"] <= 10
    else:
        assert_falls(tmp_path, "loss")
    answers, type_of_answer = answers_of(name, onepeace.load_generator(folder), picture)
    assert [type(answer) for answer in answers] == [type_of_answer]


SMALL_CAPTIONS = [
    "run.workers=0",
    "run.precision=float32",
    "run.batch_size=2",
    "run.log_every=1",
    "schedule.steps=2",
    "optim.weight_decay=0.0",  # weights change by the reward alone
    "data.train.0.keys='*'",
    "data.train.0.shards=train/image_text/coco-*.tar*",
    "data.broken_limit=1.0",
]


def number_of_letters(self, candidates, references):
    """A reward that captions of random weights get; their CIDEr-D is always zero."""
    return [float(len(caption)) for caption in candidates]


def changed_weights(folder, other):
    """Names of weights that differ between two model folders, each cut to its first two parts."""
    theirs = read_state(other)
    changed = set()
    for name, weight in read_state(folder).items():
        if not torch.equal(weight, theirs[name]):
            changed.add(".".join(name.split(".")[:2]))
    return changed


@pytest.mark.parametrize("uses_stem_features", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_tiny_captions_go_on_by_reward(prepared, tmp_path, monkeypatch, picture, uses_stem_features):
    """With features of the stem, which are computed once, no step sees the pictures."""
    monkeypatch.setattr(CiderReward, "__call__", number_of_letters)
    if uses_stem_features:
        start = ROOT / "onepeace" / "weights" / "tiny-captions"
        overrides = ["data.stem_views={image: 1}"]
    else:
        start = save_random_model(tmp_path / "captions", ("text", "image"), heads={"caption": CAPTION_HEAD})
        overrides = []
    overrides += [f"model.from={start}", f"data.root={prepared('coco')}", f"run.out={tmp_path / 'run'}"]

    folder = train(read_recipe(FOLDER / "tiny_captions_cider.yaml", [*SMALL_CAPTIONS, *overrides]))

    rewards = series(tmp_path / "run", "self_critical/image/reward")
    assert len(rewards) == 2
    assert min(rewards) > 0
    assert changed_weights(start, folder) == {"heads.caption"}
    (caption,) = onepeace.load_generator(folder).caption([picture])
    assert isinstance(caption, Text)


@pytest.fixture(scope="module")
def choosing(small_recipe, tmp_path_factory):
    """A folder that was trained to choose among the answers of VQA."""
    return train(small_recipe("ofa_vqav2", tmp_path_factory.mktemp("choosing"), "schedule.steps=1"))


def test_answers_are_choices_of_folder(choosing, prepared, picture, capsys):
    options = ["--text", "What is this?", "--model", str(choosing), "--json"]
    assert main(["answer", str(picture), *options]) == 0

    path = prepared("vqav2") / "val" / "vqav2" / "classes.json"
    choices = json.loads(path.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out)["answer"] in choices
    task = onepeace.load_generator(choosing).tasks["answer"]
    assert list(task.labels) == choices
    assert task.answer == "choice"
    assert task.decoder_prompt == "source"


def test_choices_of_folder_can_be_opened_again(choosing, small_recipe, tmp_path, picture):
    overrides = [
        "schedule.steps=1",
        "objective.generation.choices=null",
        "objective.generation.changes={answer: text, choices: null}",
    ]

    folder = train(small_recipe("ofa_vqav2", tmp_path, *overrides, model=choosing))

    (answer,) = onepeace.load_generator(folder).answer([picture], "what is this?")
    assert isinstance(answer, Text)
