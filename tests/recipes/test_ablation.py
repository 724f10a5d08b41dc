"""The separate towers of the ablation: an architecture in a file of its own, trained, measured, saved and loaded."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from support.small_shards import write_shards

import onepeace
from onepeace.hub.architectures import ARCHITECTURES
from onepeace.hub.folder import read_config
from onepeace.train.log import read_log

FOLDER = Path(__file__).parents[2] / "recipes" / "ablation"
NAME = "contrastive, separate towers"


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
    ablation["FIGURES"].clear()
    ablation["FIGURES"]["squares top-5"] = "valid/squares/top-5 of 8"
    overrides = [
        *(f"data.root={root}", "data.train=[{shards: squares.tar, pair: [image, text]}]", "run.batch_size=8"),
        *("run.workers=0", "schedule.steps=2", "schedule.warmup_ratio=0.5", "model.dim=32", "model.ffn_dim=64"),
        *(
            "model.depth=2",
            "tokenizer.vocab_size=300",
            "model.adapters.text.vocab_size=300",
            f"evaluate={{recipe: {evaluation}}}",
        ),
    ]
    ablation["run"](NAME, 1, tmp_path, overrides)
    folder = ablation["folder"](tmp_path, NAME, 1)
    log = read_log(folder / "log.jsonl")
    assert log[-1]["step"] == 2

    config = read_config(folder / "model")
    assert config.architecture == "towers"
    model = onepeace.load(folder / "model", device="cpu")
    names = set(model.module.state_dict())
    assert {"towers.text.0.ls1.gain", "towers.image.1.ls1.gain"} <= names
    assert not any(name.startswith("blocks.") for name in names)
    one, two = model.encode_text(["a red square", "a blue square"])
    assert one.norm() == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(one, two)
    with pytest.raises(ValueError, match="one modality at a time, not text with image"):
        model.module.encode({"text": None, "image": None})

    ablation["run"](NAME, 1, tmp_path, overrides)  # it is there already
    assert read_log(folder / "log.jsonl") == log
    head, _, row = ablation["table"](tmp_path).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == ["objective", "steps", "minutes", "squares top-5"]
    assert [cell.strip() for cell in row.split("|")[1:3]] == [f"{NAME} (1 seeds)", "2"]
