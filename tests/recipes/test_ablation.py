"""The separate towers of the ablation: an architecture in a file of its own, trained, measured, saved and loaded."""

import json
import runpy
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from support.small_shards import write_shards

import onepeace
from onepeace.config import read_yaml
from onepeace.hub.architectures import ARCHITECTURES
from onepeace.hub.folder import read_config
from onepeace.train.log import read_log
from onepeace.train.model_config import make_config
from onepeace.train.recipe import read_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "ablation"
STUDIES = sorted(path.stem for path in FOLDER.glob("*.yaml") if "variants" in read_yaml(path))
NAME = "separate towers"
NO_DENOISING = [f"objective.denoising/{key}=null" for key in ("text", "image", "text+image")]


@pytest.fixture
def ablation(monkeypatch):
    """The variables of recipes/ablation/run.py."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr("onepeace.hub.architectures.ARCHITECTURES", dict(ARCHITECTURES))
    monkeypatch.delitem(sys.modules, "towers", raising=False)
    return runpy.run_path(str(FOLDER / "run.py"))


def test_towers_are_trained_measured_saved_and_loaded(ablation, tmp_path, monkeypatch):
    root, evaluation = write_shards(tmp_path / "shards"), tmp_path / "evaluate.yaml"
    evaluation.write_text("sets: {squares: {protocol: zero_shot, modality: image, shards: squares.tar, at: [5]}}")
    study = tmp_path / "study.yaml"
    study.write_text(
        f"base: {FOLDER / 'base.yaml'}\n"
        "figures: {squares top-5: valid/squares/top-5 of 8}\n"
        f"overrides: {NO_DENOISING}\n"
        "variants:\n"
        f"  {NAME}: {{overrides: [model.architecture=separate_towers]}}\n"
        "  quick: {}\n  slow: {}\n  as long: {time_of: slow, steps_of: quick}\n"
    )
    overrides = [
        *(
            f"data.root={root}",
            "data.train=[{shards: squares.tar, pair: [image, text]}]",
            "run.batch_size=8",
            "run.eval_every=1",
        ),
        *("run.workers=0", "schedule.steps=2", "schedule.warmup_ratio=0.5", "model.dim=32", "model.ffn_dim=64"),
        *("model.depth=2", "tokenizer.vocab_size=300", "model.adapters.text.vocab_size=300"),
        f"evaluate={{recipe: {evaluation}}}",
    ]
    runs = ablation["Runs"](study, tmp_path, overrides)
    runs.train(NAME, 1)
    folder = runs.folder(NAME, 1)
    log = read_log(folder / "log.jsonl")
    assert log[-1]["step"] == 2

    config = read_config(folder / "model")
    assert config.architecture == "separate_towers"
    model = onepeace.load(folder / "model", device="cpu")
    names = set(model.module.state_dict())
    assert {"towers.text.0.ls1.gain", "towers.image.1.ls1.gain"} <= names
    assert not any(name.startswith("blocks.") for name in names)
    one, two = model.encode_text(["a red square", "a blue square"])
    assert one.norm() == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(one, two)
    with pytest.raises(ValueError, match="one modality at a time, not text with image"):
        model.module.encode({"text": None, "image": None})

    shutil.rmtree(folder)
    runs.train(NAME, 1)  # its result is there already
    assert not folder.exists()
    (reached,) = runs.results()
    assert (reached.variant, reached.seed, reached.step) == (NAME, 1, 2)
    assert reached.figures == {"squares top-5": log[-1]["valid/squares/top-5 of 8"]}
    times = [asdict(reached) | {"variant": name, "minutes": minutes} for name, minutes in (("quick", 2), ("slow", 4))]
    with open(runs.file, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in times)
    runs.train("as long", 1)  # twice the steps, and as many to choose from
    log = read_log(runs.folder("as long", 1) / "log.jsonl")
    assert [line["step"] for line in log if "valid/squares/top-5 of 8" in line] == [2, 4]
    head, _, row, *others = runs.table().splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["variant", "steps", "minutes", "squares top-5"]
    assert [cell.strip() for cell in row.split("|")[1:3]] == [f"{NAME} (1 seed)", "2"]
    assert "as long (1 seed)" in others[-1]
    assert "±" not in row  # of one seed


def test_with_early_stopping_the_best_step_on_other_data_counts(ablation, tmp_path, monkeypatch):
    study = tmp_path / "study.yaml"
    study.write_text(
        f"base: {FOLDER / 'base.yaml'}\nfigures: {{R: valid/test}}\nselect: valid/dev\nvariants: {{{NAME}: {{}}}}\n"
    )
    runs = ablation["Runs"](study, tmp_path, [])
    scores = iter(((0.3, 0.9), (0.5, 0.1)))

    def train(recipe, evaluate):
        best, other = next(scores)
        steps = [
            {"step": 10, "seconds": 60.0},
            {"step": 10, "valid/dev": 0.2, "valid/test": best},
            {"step": 20, "valid/dev": 0.1, "valid/test": other},
        ]
        out = Path(recipe.run.out)
        out.mkdir(parents=True)
        (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))

    parts = ablation["Runs"].train.__globals__
    monkeypatch.setitem(parts, "train", train)
    monkeypatch.setitem(parts, "evaluation", lambda recipe: None)
    for seed in (1, 2):
        runs.train(NAME, seed)
    *_, row = runs.table().splitlines()
    assert [cell.strip() for cell in row.split("|")[1:-1]] == [f"{NAME} (2 seeds)", "10", "1.0", "40.0 ± 14.1"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_variant_of_a_study_fits_its_model(ablation, name, tmp_path):
    runs = ablation["Runs"](FOLDER / f"{name}.yaml", tmp_path, [])
    for variant in runs.study.variants.values():
        make_config(read_recipe(runs.base, [*runs.study.overrides, *variant.overrides]))
        for other in filter(None, (variant.time_of, variant.steps_of)):
            assert other in runs.study.variants
