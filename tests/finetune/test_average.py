"""Averaging with the start's weights: what is mixed, what is chosen, and that a whole fine-tuning does both."""

import csv
import json

import numpy as np
import pytest
import torch
from support.random_model import save_random_model
from support.small_shards import COLOURS, square

import onepeace
from onepeace.cli import main
from onepeace.finetune import groups, split, stages
from onepeace.finetune import run as running
from onepeace.finetune.average import SHARES, choose, mixed
from onepeace.finetune.own_data import read_own_data
from onepeace.hub.weights import read_state

QUICK = ["schedule.steps=4", "optim.lr=3e-3", "run.precision=float32", "optim.layer_decay=null", "run.workers=0"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(running, "available_memory", lambda device: None)
    monkeypatch.setattr(groups, "NEAR_COPY_COSINE", {})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("models") / "random")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """80 pictures in two classes: 16 are held out, and 13 of the others chosen by."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    with open(folder / "table.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("image", "text"))
        for i in range(80):
            name = ("red", "green", "blue", "white")[i % 4]
            (folder / f"{i}.png").write_bytes(square(COLOURS[name], rng))
            rows.writerow((f"{i}.png", f"a {name} square"))
    return folder / "table.csv"


def test_a_weight_at_a_share():
    start, new = torch.tensor([1.0, 2.0], dtype=torch.float16), torch.tensor([3.0, -2.0])
    assert mixed(start, new, 0.25).tolist() == [1.5, 1.0]
    assert mixed(start, new, 0.0).tolist() == [1.0, 2.0]
    assert torch.equal(mixed(start, new, 1.0), new)
    assert mixed(None, new, 0.25) is new
    counted = torch.tensor(7)
    assert mixed(torch.tensor(3), counted, 0.25) is counted


def test_the_smallest_of_the_best_shares_is_chosen():
    module = torch.nn.Linear(1, 1)
    new = {name: torch.ones_like(tensor) for name, tensor in module.state_dict().items()}
    start = {"weight": torch.zeros(1, 1)}  # the bias is new
    seen = []

    def best_at(*best):
        def score():
            seen.append((module.weight.item(), module.bias.item()))
            return float(module.weight.item() in best)

        return choose(module, start, new, score, 9)

    assert best_at(0.5, 0.75).share == 0.5
    assert seen == [(share, 1.0) for share in SHARES]
    assert best_at().share == 0.0
    assert "kept as they were" in best_at().described()
    assert best_at(1.0).scores == {"0.0": 0.0, "0.25": 0.0, "0.5": 0.0, "0.75": 0.0, "1.0": 1.0}


def test_what_is_chosen_by_is_neither_learned_from_nor_held_out(table):
    parts, _ = split.divide(read_own_data(table, ("text", "image", "audio")), table, None)
    files = {}
    for part in parts.parts:
        files[part] = {record.inputs["image"] for record in parts.records(part, ("image", "text"))}
    assert {part: len(paths) for part, paths in files.items()} == {"val": 16, "train": 51, "choose": 13}
    assert len(set.union(*files.values())) == 80


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_fine_tuning_ends_with_the_best_of_the_averages(model, table, tmp_path, capsys, monkeypatch, lora):
    """The share of a half is made the best one, and the process dies before the model is written."""
    if lora:
        pytest.importorskip("peft")
    out, scores = tmp_path / "out", iter([0.1, 0.2, 0.4, 0.3, 0.2] * 2)
    monkeypatch.setattr(stages, "score", lambda found: next(scores))
    arguments = ["finetune", str(table), "-o", str(out), "--model", str(model), *QUICK]
    if lora:
        arguments += ["lora={rank: 4, alpha: 32}", "freeze={except: [logit_scale]}"]
    with monkeypatch.context() as patch:
        patch.setattr(stages, "mixed", lambda *_: 1 / 0)
        assert main(arguments) == 1
    tuned = read_state(out / "tuned")
    capsys.readouterr()
    assert main(arguments) == 0
    said = "50% of the new weights and 50% of the initial ones, chosen on 13 files set apart"
    assert f"averaged: {said}" in capsys.readouterr().err
    assert said in (out / "report.html").read_text()
    assert said in (out / "model" / "MODEL_CARD.md").read_text()
    assert json.loads((out / "average.json").read_text())["share"] == 0.5
    assert not (out / "tuned").exists()
    assert not list(out.glob("step-*"))  # nothing goes on from them
    start, found = read_state(model), read_state(out / "model")
    moved = [name for name in found if not torch.equal(tuned[name], start[name])]
    assert len(moved) >= 4
    for name in moved:
        assert torch.allclose(found[name], (start[name] + tuned[name]) / 2, atol=1e-6), name
    assert onepeace.load(out / "model").encode_text(["a red square"]).isfinite().all()
    assert main(arguments) == 0  # nothing is chosen again, nor trained
