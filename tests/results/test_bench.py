"""`python docs/results/bench.py` measures what it says; how fast that is, is nobody's promise."""

import re
from itertools import groupby
from pathlib import Path

import pytest
import torch
from bench import main
from benchmarks.comparison import MIN_ROUNDS, take_turns
from benchmarks.train import StepPair, bench_train

from onepeace.train.recipe import read_recipe

CPU = torch.device("cpu")
STAGE_TWO = Path(__file__).parents[2] / "recipes" / "pretrain" / "base_audio_text.yaml"
SHRUNKEN = [
    "model={size: tiny, depth: 2, drop_path: 0.0, modalities: [text, audio]}",
    "model.adapters={audio: {stem: wave, convs: [[32, 10, 5], [32, 8, 8], [32, 8, 8]]}}",
]


def assert_interval(interval):
    assert 0 < interval["low"] <= interval["median"] <= interval["high"]


def test_candidates_take_turns():
    calls = []
    candidates = {
        "a": lambda: calls.append("a"),
        "b": lambda: calls.append("b"),
    }
    times = take_turns(candidates, 0, CPU)

    for name in ("a", "b"):
        assert len(times[name]) == MIN_ROUNDS
        assert min(times[name]) > 0
    turns = [name for name, _ in groupby(calls)]
    assert turns == ["a", "b"] * (MIN_ROUNDS + 1)  # one round of warm-up


def test_encode_prints_a_table(capsys, random_folder):
    options = ["--seconds", "0", "--threads", "1", "--batch", "3", "--dtypes", "bfloat16"]
    assert main(["encode", "--size", str(random_folder), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    _, _, *rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3
    for row in rows:
        assert "| bfloat16 | 3 |" in re.sub(" +", " ", row)
    assert "1 threads" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["encode", "--batch", "0"], 2, "--batch is 0"),
        (["encode", "--dtypes", "float23"], 1, "'float23'"),
        (["train"], 2, "recipe"),
    ],
)
def test_wrong_options_are_named_on_the_last_line(capsys, arguments, code, words):
    assert main(arguments) == code
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def short_clips(monkeypatch):
    monkeypatch.setattr("benchmarks.train.SHORTEST_CLIP", 0.2)
    monkeypatch.setattr("benchmarks.train.LONGEST_CLIP", 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("short_clips")
def test_rows_of_training():
    run = ["run.batch_size=16", "run.recompute=blocks"]  # of 4 items fixed costs prevail
    recipe = read_recipe(STAGE_TWO, [*SHRUNKEN, *run])
    (row,) = bench_train(recipe, [torch.bfloat16], CPU, 0)
    assert row["source"] == "audio+text"
    assert row["dtype"] == "bfloat16"
    assert row["batch"] == 16
    assert row["recompute"] == "blocks"
    assert_interval(row["time_ours_over_baseline"])
    assert row["memory_ours_over_baseline"] < 1
    assert row["padding"]["ours"] < 0.12 < row["padding"]["baseline"]
    assert row["teraflops"] > 0


@pytest.mark.usefixtures("short_clips")
def test_steps_that_differ_are_not_timed():
    recipe = read_recipe(STAGE_TWO, [*SHRUNKEN, "run.batch_size=4"])
    steps = StepPair("audio+text", recipe, CPU)
    steps.check()
    baseline = steps.candidates["baseline"]

    def step_with_another_loss(batch):
        losses = baseline(batch)
        return {**losses, "loss": 1.001 * losses["loss"]}

    steps.candidates["baseline"] = step_with_another_loss
    with pytest.raises(RuntimeError, match="loss"):
        steps.check()
