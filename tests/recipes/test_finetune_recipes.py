"""Every fine-tuning recipe on made-up files in the official layout: loss, measure, save, load, predict."""

import sys
from pathlib import Path

import pytest
from support.clips import plain_video
from support.downloads import DOWNLOADS, fill, picture
from support.fake_gpu import StepChecked, check_first_step
from support.finetune_downloads import FINETUNE
from support.random_model import ADAPTERS, save_random_model

import onepeace
from onepeace.cli import main
from onepeace.config import read_yaml
from onepeace.data.shards import read_source
from onepeace.datasets import LAYOUTS
from onepeace.train.evaluation import evaluation
from onepeace.train.log import read_log
from onepeace.train.loop import train
from onepeace.train.recipe import read_recipe

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "finetune"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")
SETS = {
    "coco_retrieval": ["coco"],
    "flickr30k_retrieval": ["flickr30k"],
    "audio_retrieval": ["audiocaps", "clotho", "macs"],
    "sound_events": ["desed"],
    "vggsound_av": ["vggsound"],
}
"""Where they are not called like the recipe."""
OPTIONS = {"vggsound_av": ["pictures=true"]}
"""Of the layout."""
MORE = {
    "vggsound": lambda: {
        "clips/---g-f_I2yQ_000001.jpg": picture(1),
        "clips/--0PQM4-hqg_000030.mp4": plain_video(5, colour=(200, 40, 40)),
    },
    "kinetics": lambda: {
        "train/air drumming/aaaaaaaaaaa_000007_000017.mp4": plain_video(20, level=2),
        "train/testifying/gonegonegon_000000_000010.mp4": plain_video(30, colour=(200, 40, 40)),
        "val/bbbbbbbbbbb_000000_000010.mp4": plain_video(4, colour=(190, 50, 40)),
    },
}
"""Files of a download that its layout can do without."""
WAITS_FOR_GPU = {"coco_detection"}
"""torchvision's losses choose regions by their values."""
SMALL = [
    "run.workers=0", "run.precision=float32", "schedule.steps=8", "schedule.warmup_ratio=0.1", "optim.lr=2e-3",
    "optim.layer_decay=null", "model.drop_path=0.0", "run.log_every=2", "run.save_minutes=0", "data.broken_limit=1.0",
]  # fmt: skip


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small model like the released one: three modalities, one table of biases for all blocks, no head."""
    adapters = {**ADAPTERS, "image": {"patch_size": 16, "grid": 3, "bias_grid": 3}}
    return save_random_model(tmp_path_factory.mktemp("models") / "one-peace", adapters=adapters)


def test_each_recipe_says_what_it_starts_from_and_is_measured_on():
    assert len(RECIPES) >= 14
    sets = read_yaml(ROOT / "recipes" / "evaluate" / "finetune.yaml")["sets"]
    named = [name for recipe in RECIPES for name in read_yaml(FOLDER / f"{recipe}.yaml")["evaluate"]["sets"]]
    assert sorted(named) == sorted(sets)


# Those that have a quicker sibling of the same task, here or in tests/train/test_tasks.py.
SLOW = {"audio_retrieval", "flickr30k_retrieval", "imagenet", "nlvr2", "refcoco_plus", "refcocog", "sound_events",
        "vggsound"}  # fmt: skip


def small_recipe(name, released, tmp_path, monkeypatch):
    """The recipe, shrunk, on shards of a made-up download."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("onepeace.datasets.LAYOUTS", dict(LAYOUTS))
    monkeypatch.delitem(sys.modules, "own_layouts", raising=False)
    root = tmp_path / "data"
    for layout in SETS.get(name, [name]):
        download = tmp_path / layout
        download.mkdir()
        fill(download, {**DOWNLOADS, **FINETUNE}[layout]() | MORE.get(layout, dict)())
        options = OPTIONS.get(name, [])
        layouts = ["--import", "recipes/own_layouts.py", "--layout", layout]
        main(["shards", *layouts, str(download), *options, "-o", str(root)])  # 1 where files are not there on purpose
    content = read_yaml(FOLDER / f"{name}.yaml")
    terms = [entry["term"] for entry in content["objective"]]
    overrides = [*SMALL, f"model.from={released}", f"data.root={root}", f"run.out={tmp_path / 'run'}"]
    if "image" in content["model"]["modalities"]:
        overrides += ["processors.image.size=48"]
    if "image" in content.get("processors", {}):  # pictures larger than before
        overrides += ["processors.image.size=64", "model.adapters.image.bias_grid=4"]
    if "text" in content.get("processors", {}):
        overrides += ["processors.text.max_tokens=30"]
    if terms == ["box"]:  # one picture and four numbers: it takes a while to turn the right way
        overrides += ["schedule.steps=48"]
    elif terms == ["contrastive"]:
        overrides += ["schedule.steps=16", "run.log_every=4"]
    if terms == ["detection"]:
        overrides += ["model.heads.classifier.channels=16", "model.heads.classifier.hidden=32"]
    if "video" in content["model"]["modalities"]:
        overrides += ["model.adapters.video.frames=2"]
        overrides += [f"processors.video.{name}" for name in ("size=48", "frames=2", "stride=3")]
    if "audio" in content["model"]["modalities"]:
        overrides += ["processors.audio.max_seconds=2.0", "processors.audio.min_seconds=0.5"]
    return read_recipe(FOLDER / f"{name}.yaml", [*overrides, "run.batch_size=2", "run.grad_cache_chunks=2"])


@pytest.mark.parametrize("name", sorted(SLOW))
def test_step_of_recipe_waits_for_no_gpu(released, tmp_path, monkeypatch, name):
    """Those whose run is slow; the others' steps are checked in their run."""
    check_first_step(monkeypatch, then_stop=True)
    with pytest.raises(StepChecked):
        train(small_recipe(name, released, tmp_path, monkeypatch))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in RECIPES])
def test_recipe_learns_is_measured_and_its_model_predicts(released, tmp_path, monkeypatch, name):
    recipe = small_recipe(name, released, tmp_path, monkeypatch)
    if name not in WAITS_FOR_GPU:
        check_first_step(monkeypatch)
    content = read_yaml(FOLDER / f"{name}.yaml")
    scores = {}
    measure = evaluation(recipe)
    folder = train(recipe, lambda model, processors: scores.update(measure(model, processors)) or scores)
    first, *_, last, _ = read_log(tmp_path / "run" / "log.jsonl")
    assert last["loss"] < first["loss"]
    assert {key.split("/")[0] for key in scores} == set(content["evaluate"]["sets"])
    assert all(0 <= value <= 1 for value in scores.values())
    model = onepeace.load(folder)
    if not model.module.config.heads:
        assert model.encode_text(["a dog"]).isfinite().all()
        return
    (pair,) = recipe.data.train
    sample = read_source(pair.shards, pair.pair, recipe.data.root, targets=pair.targets, broken_limit=1.0)[0]
    item = {key: sample.captions[0] if key == "text" else sample.inputs[key] for key in pair.pair}
    item |= {"candidates": sample.targets["candidates"]} if "candidates" in sample.targets else {}
    (result,) = model.predict([item])
    assert set(result) & {"labels", "answer", "box", "boxes", "choice", "events", "mask"}
