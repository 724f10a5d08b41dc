"""Every fine-tuning recipe on made-up files in the official layout: loss, measure, save, load, predict."""

from pathlib import Path

import pytest
from support.clips import plain_video
from support.downloads import picture
from support.fake_gpu import StepChecked, check_first_step
from support.random_model import ADAPTERS, save_random_model
from support.training import assert_falls, with_slow

import onepeace
from onepeace.config import read_yaml
from onepeace.data.source import read_source
from onepeace.train.evaluation import evaluation
from onepeace.train.recipe import read_recipe
from onepeace.train.trainer import train

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes" / "finetune"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "base")
SETS = {
    "coco_retrieval": ["coco_karpathy"],
    "flickr30k_retrieval": ["flickr30k"],
    "audio_retrieval": ["audiocaps", "clotho", "macs"],
    "sound_events": ["desed"],
    "vggsound_av": ["vggsound"],
}
"""Layouts of recipes that are not called like their layout."""
OPTIONS = {"vggsound_av": ["pictures=true"]}
"""Options of the layout."""
OPTIONAL_FILES = {
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
PREDICTIONS = {
    "ade20k": "mask",
    "avqa": "choice",
    "coco_detection": "boxes",
    "fsd50k": "labels",
    "imagenet": "labels",
    "kinetics": "labels",
    "nlvr2": "labels",
    "refcoco": "box",
    "refcoco_plus": "box",
    "refcocog": "box",
    "sound_events": "events",
    "vggsound": "labels",
    "vggsound_av": "labels",
    "vqav2": "answer",
}
"""Key of what the head of a recipe predicts; recipes that are not here train vectors."""
WAITS_FOR_GPU = {"coco_detection"}
"""torchvision's losses choose regions by their values."""
SLOW = {
    "audio_retrieval",
    "flickr30k_retrieval",
    "imagenet",
    "nlvr2",
    "refcoco_plus",
    "refcocog",
    "sound_events",
    "vggsound",
}
"""Those that have a quicker sibling of the same task."""
ALONE = ["imagenet", "nlvr2", "sound_events"]
"""Those of them whose sibling has other passes or another loss."""
SMALL = [
    "run.workers=0",
    "run.precision=float32",
    "run.batch_size=2",
    "run.grad_cache_chunks=2",
    "run.log_every=2",
    "run.save_minutes=0",
    "schedule.steps=8",
    "schedule.warmup_ratio=0.1",
    "optim.lr=2e-3",
    "optim.layer_decay=null",
    "model.drop_path=0.0",
    "data.broken_limit=1.0",
]
SMALL_TERMS = {
    "box": ["schedule.steps=48"],  # one picture and four numbers: it takes a while to turn the right way
    "contrastive": ["schedule.steps=16", "run.log_every=4"],
    "detection": ["model.heads.classifier.channels=16", "model.heads.classifier.hidden=32"],
}
"""Overrides for recipes with one term, by term."""
SMALL_MODALITIES = {
    "image": ["processors.image.size=48"],
    "video": [
        "model.adapters.video.frames=2",
        "processors.video.size=48",
        "processors.video.frames=2",
        "processors.video.stride=3",
    ],
    "audio": ["processors.audio.max_seconds=2.0", "processors.audio.min_seconds=0.5"],
}
SMALL_PROCESSORS = {
    "image": ["processors.image.size=64", "model.adapters.image.bias_grid=4"],  # pictures larger than before
    "text": ["processors.text.max_tokens=30"],
}
"""Overrides for recipes that set options of these processors."""


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small model like the released one: three modalities, one table of biases for all blocks, no head."""
    adapters = {**ADAPTERS, "image": {"patch_size": 16, "grid": 3, "bias_grid": 3}}
    return save_random_model(tmp_path_factory.mktemp("models") / "one-peace", adapters=adapters)


def small_overrides(content):
    """Overrides that shrink a recipe of this content."""
    overrides = list(SMALL)
    for key in content["model"]["modalities"]:
        overrides += SMALL_MODALITIES.get(key, [])
    for key in content.get("processors", {}):
        overrides += SMALL_PROCESSORS.get(key, [])
    terms = [entry["term"] for entry in content["objective"]]
    if len(terms) == 1:
        overrides += SMALL_TERMS.get(terms[0], [])
    return overrides


@pytest.fixture
def small_recipe(released, prepare, tmp_path, monkeypatch):
    """Reads a recipe, shrunk, on shards of a made-up download."""
    monkeypatch.chdir(ROOT)

    def read(name):
        path = FOLDER / f"{name}.yaml"
        for layout in SETS.get(name, [name]):
            files = OPTIONAL_FILES.get(layout, dict)()
            root = prepare(layout, *OPTIONS.get(name, []), files=files).root
        places = [f"model.from={released}", f"data.root={root}", f"run.out={tmp_path / 'run'}"]
        return read_recipe(path, [*small_overrides(read_yaml(path)), *places])

    return read


def first_item(recipe):
    """The first sample of a recipe's training data, as a model's input."""
    (source,) = recipe.data.train
    options = {"targets": source.targets, "broken_limit": 1.0}
    sample = read_source(source.shards, source.pair, recipe.data.root, **options)[0]
    item = {key: sample.inputs[key] for key in source.pair if key != "text"}
    if "text" in source.pair:
        item["text"] = sample.captions[0]
    if "candidates" in sample.targets:
        item["candidates"] = sample.targets["candidates"]
    return item


def test_every_set_of_evaluation_has_a_recipe():
    sets = read_yaml(ROOT / "recipes" / "evaluate" / "finetune.yaml")["sets"]
    named = []
    for recipe in RECIPES:
        named += read_yaml(FOLDER / f"{recipe}.yaml")["evaluate"]["sets"]

    assert sorted(named) == sorted(sets)


@pytest.mark.parametrize("name", ALONE)
def test_step_of_finetune_recipe_waits_for_no_gpu(small_recipe, monkeypatch, name):
    """The steps of the others are checked in their run."""
    check_first_step(monkeypatch, then_stop=True)
    with pytest.raises(StepChecked):
        train(small_recipe(name))


@pytest.mark.parametrize("name", with_slow(RECIPES, SLOW.__contains__))
def test_finetune_recipe_learns_and_predicts(small_recipe, tmp_path, monkeypatch, name):
    recipe = small_recipe(name)
    if name not in WAITS_FOR_GPU:
        check_first_step(monkeypatch)
    measure = evaluation(recipe)
    scores = {}

    def evaluate(model, processors):
        scores.update(measure(model, processors))
        return scores

    folder = train(recipe, evaluate)

    assert_falls(tmp_path / "run", "loss")
    assert {key.split("/")[0] for key in scores} == set(recipe.evaluate.sets)
    assert all(0 <= score <= 1 for score in scores.values())  # shares, not per cent, and no NaN

    model = onepeace.load(folder)
    if name in PREDICTIONS:
        (result,) = model.predict([first_item(recipe)])
        assert PREDICTIONS[name] in result
    else:
        assert not model.module.config.heads
        assert model.encode_text(["a dog"]).isfinite().all()
