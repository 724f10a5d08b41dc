"""`python -m onepeace.bench` measures what it says; how fast that is, is nobody's promise."""

from pathlib import Path

import pytest
import torch
from torch import nn

from onepeace.bench import encode
from onepeace.bench.__main__ import main
from onepeace.bench.comparison import MIN_ROUNDS, take_turns
from onepeace.bench.encode import bench_encode
from onepeace.bench.train import StepPair, bench_train
from onepeace.train.recipe import read_recipe

CPU = torch.device("cpu")
STAGE_TWO = Path(__file__).parents[2] / "recipes" / "pretrain" / "base_audio_text.yaml"
SHRUNKEN = [
    "model={size: tiny, depth: 2, drop_path: 0.0, modalities: [text, audio]}",
    "model.adapters={audio: {stem: wave, convs: [[32, 10, 5], [32, 8, 8], [32, 8, 8]]}}",
]


def measured(size, dtype=torch.float32, batch=1):
    return list(bench_encode([str(size)], [dtype], CPU, 0, batch))


def test_candidates_take_turns_and_all_have_as_many():
    order = []
    times = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 0, CPU)
    assert {name: len(values) for name, values in times.items()} == {"a": MIN_ROUNDS, "b": MIN_ROUNDS}
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert turns == ["a", "b"] * (MIN_ROUNDS + 1)  # one round of warm-up
    assert all(value > 0 for values in times.values() for value in values)


def test_rows_of_encoding(random_folder):
    rows = measured(random_folder, torch.bfloat16, 3)
    assert [(row["modality"], row["dtype"], row["tokens"]) for row in rows] == [
        ("text", "bfloat16", 15), ("image", "bfloat16", 5), ("audio", "bfloat16", 64)
    ]  # fmt: skip
    for row in rows:
        assert row["batch"] == 3
        assert row["baseline"] is None
        for name in ("items_per_second", "limit_gflops", "fraction_of_limit"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]


def test_bench_encode_prints_a_table(capsys, random_folder):
    options = ["--seconds", "0", "--threads", "1", "--batch", "3", "--dtypes", "bfloat16"]
    assert main(["encode", "--size", str(random_folder), *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("|")]) == 2 + 3
    assert "1 threads" in printed[-1]


class Tower(nn.Module):
    """Stands in for open_clip's tower."""

    output_dim = 7

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(3, 7)

    def forward(self, pixels):
        return self.proj(pixels.mean((2, 3)))


@pytest.fixture
def base(random_folder, monkeypatch):
    """The name of a size that is small, whose baseline is a `Tower`, which is returned."""
    made, tower = encode.make(str(random_folder)), Tower()
    monkeypatch.setattr(encode, "make", lambda size: made)
    monkeypatch.setattr(encode, "_baseline", lambda: tower)
    return tower


@pytest.mark.slow
def test_baseline_runs_beside_the_pictures_of_the_base_size(base):
    rows = {row["modality"]: row for row in measured("base", dtype=torch.bfloat16, batch=2)}
    assert rows["text"]["baseline"] is None
    assert rows["audio"]["baseline"] is None
    found = rows["image"]["baseline"]
    assert found["items_per_second"]["median"] > 0
    assert found["ours_over_baseline"]["median"] > 0
    assert found["gflop_per_item"] == 2 * 3 * 7 / 1e9
    assert " x its " in encode.columns(rows["image"])["against open_clip"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["encode", "--batch", "0"], 2, "--batch is 0"),
        (["encode", "--dtypes", "float23"], 1, "dtype 'float23' is not known"),
        (["encode", "--device", "gpu"], 1, "device 'gpu' is not available here"),
        (["encode", "--seconds", "nan"], 2, "--seconds is nan"),
        (["train"], 2, "train takes a recipe"),
        (["encode", "x.yaml"], 2, "encode takes no recipe"),
    ],
)
def test_wrong_options_are_one_line(capsys, arguments, code, message):
    assert main(arguments) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_rows_of_training(monkeypatch):
    monkeypatch.setattr("onepeace.bench.train.SHORTEST_CLIP", 0.2)
    monkeypatch.setattr("onepeace.bench.train.LONGEST_CLIP", 1.0)
    run = ["run.batch_size=16", "run.recompute=blocks"]  # of 4 items fixed costs prevail
    (row,) = bench_train(read_recipe(STAGE_TWO, [*SHRUNKEN, *run]), [torch.bfloat16], CPU, 0)
    assert (row["pair"], row["dtype"], row["batch"]) == ("audio+text", "bfloat16", 16)
    assert row["recompute"] == "blocks"
    assert 0 < row["time_ours_over_baseline"]["low"] <= row["time_ours_over_baseline"]["median"]
    assert row["memory_ours_over_baseline"] < 1
    assert row["padding"]["ours"] < 0.12 < row["padding"]["baseline"]
    assert row["teraflops"]["median"] > 0


def test_steps_that_differ_are_not_timed(monkeypatch):
    monkeypatch.setattr("onepeace.bench.train.SHORTEST_CLIP", 0.2)
    monkeypatch.setattr("onepeace.bench.train.LONGEST_CLIP", 1.0)
    recipe = read_recipe(STAGE_TWO, [*SHRUNKEN, "run.batch_size=4"])
    steps = StepPair("audio+text", recipe, CPU)
    baseline = steps.candidates["baseline"]
    steps.candidates["baseline"] = lambda batch: {**(found := baseline(batch)), "loss": 1.001 * found["loss"]}
    with pytest.raises(RuntimeError, match="the two candidates differ: the loss loss by"):
        steps.check()
