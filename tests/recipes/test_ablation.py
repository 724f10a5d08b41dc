"""The separate towers of the ablation: an architecture in a file of its own, trained, measured, saved and loaded."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from support.small_shards import write_shards
from support.training import logged

import onepeace
from onepeace.config import read_yaml, write_config
from onepeace.hub.architectures import ARCHITECTURES
from onepeace.hub.folder import read_config
from onepeace.train.model_config import make_config
from onepeace.train.recipe import read_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "ablation"
STUDIES = sorted(path.stem for path in FOLDER.glob("*.yaml") if "variants" in read_yaml(path))
NAME = "separate towers"
SCORE = "valid/squares/top-5 of 8"
SQUARES = {"protocol": "zero_shot", "modality": "image", "shards": "squares.tar", "at": [5]}
STUDY = {
    "base": str(FOLDER / "base.yaml"),
    "figures": {"squares top-5": SCORE},
    "overrides": [f"objective.denoising/{on}=null" for on in ("text", "image", "text+image")],
    "variants": {
        NAME: {"overrides": ["model.architecture=separate_towers"]},
        "quick": {},
        "slow": {},
        "as long": {"time_of": "slow", "steps_of": "quick"},
    },
}
SMALL = [
    "data.train=[{shards: squares.tar, pair: [image, text]}]",
    "run.batch_size=8",
    "run.eval_every=1",
    "run.workers=0",
    "schedule.steps=2",
    "schedule.warmup_ratio=0.5",
    "model.dim=32",
    "model.ffn_dim=64",
    "model.depth=2",
    "tokenizer.vocab_size=300",
    "model.adapters.text.vocab_size=300",
]


@pytest.fixture(scope="module")
def ablation():
    """The variables of recipes/ablation/run.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        patch.setattr("onepeace.hub.architectures.ARCHITECTURES", dict(ARCHITECTURES))
        patch.delitem(sys.modules, "towers", raising=False)
        yield runpy.run_path(str(FOLDER / "run.py"))


@pytest.fixture(scope="module")
def runs(ablation, tmp_path_factory):
    """The runs of a small study, whose first variant is trained."""
    folder = tmp_path_factory.mktemp("study")
    write_shards(folder / "shards")
    write_config({"sets": {"squares": SQUARES}}, folder / "evaluate.yaml")
    write_config(STUDY, folder / "study.yaml")
    places = [f"data.root={folder / 'shards'}", f"evaluate={{recipe: {folder / 'evaluate.yaml'}}}"]
    runs = ablation["Runs"](folder / "study.yaml", folder / "runs", [*SMALL, *places])
    runs.train(NAME, 1)
    return runs


def test_towers_replace_blocks(runs):
    folder = runs.folder(NAME, 1) / "model"

    assert read_config(folder).architecture == "separate_towers"
    model = onepeace.load(folder, device="cpu")
    names = set(model.module.state_dict())
    assert {"towers.text.0.ls1.gain", "towers.image.1.ls1.gain"} <= names
    assert not any(name.startswith("blocks.") for name in names)
    red, blue = model.encode_text(["a red square", "a blue square"])
    assert not red.allclose(blue)
    with pytest.raises(ValueError, match="not text with image"):
        model.module.encode({"text": None, "image": None})


def test_result_is_last_measurement(runs):
    result = runs.results()[0]

    last_line = logged(runs.folder(NAME, 1))[-1]
    assert (result.variant, result.seed, result.step) == (NAME, 1, 2)
    assert result.figures == {"squares top-5": last_line[SCORE]}
    assert last_line["step"] == 2


def test_run_with_result_is_not_trained_again(runs, tmp_path):
    folder = runs.folder(NAME, 1)
    shutil.move(folder, tmp_path / "aside")

    runs.train(NAME, 1)

    assert not folder.exists()
    shutil.move(tmp_path / "aside", folder)


def test_variant_of_equal_time_takes_more_steps(runs):
    """Twice the steps, and as many to choose from."""
    result = runs.results()[0]
    with runs.file.open("a") as file:
        for name, minutes in (("quick", 2), ("slow", 4)):
            line = {**vars(result), "variant": name, "minutes": minutes}
            file.write(f"{json.dumps(line)}\n")

    runs.train("as long", 1)

    lines = logged(runs.folder("as long", 1))
    assert [line["step"] for line in lines if SCORE in line] == [2, 4]


def cells(row):
    return [cell.strip() for cell in row.split("|")[1:-1]]


EARLY_STOPPING = {
    "base": STUDY["base"],
    "figures": {"R": "valid/test"},
    "select": "valid/dev",
    "variants": {NAME: {}},
}


def write_log(recipe, evaluate):
    """Writes the log of a training whose best step is the first that is measured."""
    lines = [
        {"step": 10, "seconds": 60.0},
        {"step": 10, "valid/dev": 0.2, "valid/test": 0.1 + 0.2 * recipe.seed},
        {"step": 20, "valid/dev": 0.1, "valid/test": 0.9},
    ]
    out = Path(recipe.run.out)
    out.mkdir(parents=True)
    (out / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_table_of_early_stopped_runs(ablation, tmp_path, monkeypatch):
    """The step that is best on other data counts."""
    write_config(EARLY_STOPPING, tmp_path / "study.yaml")
    runs = ablation["Runs"](tmp_path / "study.yaml", tmp_path / "runs", [])
    variables = runs.train.__globals__
    monkeypatch.setitem(variables, "train", write_log)
    monkeypatch.setitem(variables, "evaluation", lambda recipe: None)

    runs.train(NAME, 1)
    titles, _, row = runs.table().splitlines()
    assert cells(titles) == ["variant", "steps", "minutes", "R"]
    assert cells(row) == [f"{NAME} (1 seed)", "10", "1.0", "30.0"]

    runs.train(NAME, 2)
    row = runs.table().splitlines()[-1]
    assert cells(row) == [f"{NAME} (2 seeds)", "10", "1.0", "40.0 ± 14.1"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_study_fits_its_model(ablation, name, tmp_path):
    runs = ablation["Runs"](FOLDER / f"{name}.yaml", tmp_path, [])
    study = runs.study

    for variant in study.variants.values():
        make_config(read_recipe(runs.base, [*study.overrides, *variant.overrides]))
        assert {variant.time_of, variant.steps_of} <= {None, *study.variants}
