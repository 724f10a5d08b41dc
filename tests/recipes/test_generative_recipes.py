"""Every recipe of OFA on made-up files in the official layout: it lowers its loss, saves, loads and answers."""

import json
from pathlib import Path

import pytest
from support.downloads import DOWNLOADS, fill
from support.fake_gpu import StepChecked, check_first_step
from support.finetune_downloads import FINETUNE
from support.generative import save_trainable_ofa
from support.random_model import save_random_model

import onepeace
from onepeace.cli import main
from onepeace.generative.answers import Box, Choice, Objects, Text
from onepeace.train.log import read_log
from onepeace.train.loop import train
from onepeace.train.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "generative"
RECIPES = sorted(path.stem for path in FOLDER.glob("ofa_*.yaml") if path.stem != "ofa_base")
LAYOUTS = {
    "ofa_caption": ["coco"],
    "ofa_caption_cider": ["coco"],
    "ofa_vqav2": ["vqav2"],
    "ofa_refcoco": ["refcoco"],
    "ofa_snli_ve": ["snli_ve"],
    "ofa_imagenet": ["imagenet"],
    "ofa_infilling": ["coco"],
    "ofa_pretrain": ["coco", "vqav2", "refcoco", "coco_detection"],
}
SMALL = [
    "run.workers=0", "run.precision=float32", "run.batch_size=3", "run.grad_cache_chunks=1", "run.log_every=1",
    "run.recompute=ffn",
    "run.save_minutes=0", "schedule.steps=4", "schedule.warmup_ratio=0.1", "schedule.warmup_steps=null",
    "optim.lr=5e-3", "model.dropout=0.0", "model.drop_path=0.0", "processors.image.size=64", "data.broken_limit=1.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return save_trainable_ofa(tmp_path_factory.mktemp("models") / "ofa")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Makes shards of layouts, once."""
    folder = tmp_path_factory.mktemp("downloads")

    def shards(*layouts):
        for layout in layouts:
            if not (download := folder / layout).exists():
                download.mkdir()
                fill(download, {**DOWNLOADS, **FINETUNE}[layout]())
                main(["shards", "--layout", layout, str(download), "-o", str(folder / "data")])
        return folder / "data"

    return shards


def answers_of(name, generator, image):
    """What a model that was trained so says, by itself."""
    if name in ("ofa_caption", "ofa_caption_cider"):
        return generator.caption([image]), Text
    if name == "ofa_vqav2":
        return generator.answer([image], "what is this?"), Choice
    if name == "ofa_refcoco":
        return generator.ground([image], "the dog"), Box
    if name == "ofa_snli_ve":
        return generator.ask("entail_premise", [{"image": image, "text": "a cat", "premise": "a dog"}]), Choice
    if name == "ofa_imagenet":
        return generator.ask("classify", [{"image": image}]), Choice
    if name == "ofa_infilling":
        return generator.ask("infill", [{"text": "a <mask> dog"}]), Text
    return generator.ask("detect", [{"image": image}]), Objects


QUICK = {"ofa_caption", "ofa_pretrain"}
"""The others differ in their data and kind of answer, which the pretraining and tests/train/test_generation.py try."""


WAITS_FOR_GPU = {"ofa_caption_cider"}
"""Its captions are searched for and compared as words, on the CPU."""


def small_recipe(name, start, prepared, tmp_path):
    """The recipe, shrunk, on shards of a made-up download."""
    root = prepared(*LAYOUTS[name])
    overrides = [*SMALL, f"model.from={start}", f"data.root={root}", f"run.out={tmp_path / 'run'}"]
    if name == "ofa_pretrain":
        overrides += ["model.size=null", "tokenizer.vocab_size=8000", *(
            f"objective.generation/{task}.patches=9" for task in ("caption", "match", "answer", "ground", "describe")
        )]  # fmt: skip
    return read_recipe(FOLDER / f"{name}.yaml", overrides)


@pytest.mark.parametrize("name", sorted({*RECIPES} - WAITS_FOR_GPU))
def test_step_of_recipe_waits_for_no_gpu(start, prepared, tmp_path, monkeypatch, name):
    check_first_step(monkeypatch, then_stop=True)
    with pytest.raises(StepChecked):
        train(small_recipe(name, start, prepared, tmp_path))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in RECIPES])
def test_recipe_learns_and_its_model_answers(start, prepared, tmp_path, samples, name):
    recipe = small_recipe(name, start, prepared, tmp_path)
    folder = train(recipe)
    first, *_, last = read_log(tmp_path / "run" / "log.jsonl")
    assert {options.name for options in recipe.terms} <= set(last)
    if name == "ofa_caption_cider":
        assert 0 <= first["self_critical/reward"] <= 10
    else:
        assert last["loss"] < first["loss"]
    generator = onepeace.load_generator(folder)
    found, type_of = answers_of(name, generator, samples / "images" / "cat.jpg")
    assert [type(one) for one in found] == [type_of]


@pytest.mark.parametrize("kept", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_caption_head_goes_on_by_reward(prepared, tmp_path, samples, kept):
    head = {"kind": "caption", "on": ["image"], "vocab_size": 400, "dim": 16, "depth": 1, "num_heads": 2, "ffn_dim": 16}
    if kept:  # the stem's features are computed once, and no step sees the pictures
        start = ["model.from=tiny-captions", "data.stem_views={image: 1}"]
    else:
        start = [f"model.from={save_random_model(tmp_path / 'captions', ('text', 'image'), heads={'caption': head})}"]
    small = ["run.workers=0", "run.precision=float32", "run.batch_size=2", "schedule.steps=2", "run.log_every=1"]
    keys = ["data.train.0.keys='*'", "data.train.0.shards=train/image_text/coco-*.tar*", "data.broken_limit=1.0"]
    overrides = [*start, *small, *keys, f"data.root={prepared('coco')}", f"run.out={tmp_path / 'run'}"]
    folder = train(read_recipe(FOLDER / "tiny_captions_cider.yaml", overrides))
    assert all(line["self_critical/image/reward"] >= 0 for line in read_log(tmp_path / "run" / "log.jsonl"))
    assert isinstance(onepeace.load_generator(folder).caption([samples / "images" / "cat.jpg"])[0], Text)


def test_the_command_answers_with_what_the_folder_stores(start, prepared, tmp_path, samples, capsys):
    root, out = prepared("vqav2"), tmp_path / "run"
    file = FOLDER / "ofa_vqav2.yaml"
    folder = train(
        read_recipe(file, [*SMALL, f"model.from={start}", f"data.root={root}", f"run.out={out}", "schedule.steps=1"])
    )
    capsys.readouterr()
    picture = str(samples / "images" / "cat.jpg")
    assert main(["answer", picture, "--question", "What is this?", "--model", str(folder), "--json"]) == 0
    choices = json.loads((root / "val" / "vqav2" / "classes.json").read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out)["answer"] in choices
    task = onepeace.load_generator(folder).tasks["answer"]
    assert (task.decoder_prompt, task.answer, list(task.labels)) == ("source", "choice", choices)
    again = train(
        read_recipe(file, [*SMALL, f"model.from={out}", f"data.root={root}", f"run.out={tmp_path / 'open'}",
                           "schedule.steps=1", "objective.generation.choices=null",
                           "objective.generation.changes={answer: text, choices: null}"])
    )  # fmt: skip
    (open_answer,) = onepeace.load_generator(again).answer([picture], "what is this?")
    assert isinstance(open_answer, Text)
