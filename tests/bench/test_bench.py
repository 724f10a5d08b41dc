"""`onepeace bench` measures what it says; how fast that is, is nobody's promise."""

import json

import pytest
import torch
from support import plain_step
from support.random_model import save_random_model
from torch import nn

from onepeace.bench import encode, loss, train
from onepeace.bench.encode import Settings, bench_encode, random_config
from onepeace.bench.timing import MIN_ROUNDS, take_turns
from onepeace.cli import main
from onepeace.cost.items import CAPTION_TOKENS, item_batch, picture_size
from onepeace.cost.live import Live
from onepeace.losses.tiled_infonce import TILE
from onepeace.train.recipe import to_yaml

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("bench") / "model")


def test_candidates_take_turns_and_all_have_as_many():
    order = []
    times = take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 0, CPU)
    assert {name: len(values) for name, values in times.items()} == {"a": MIN_ROUNDS, "b": MIN_ROUNDS}
    turns = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert turns == ["a", "b"] * (MIN_ROUNDS + 1)  # one round of warm-up
    assert all(value > 0 for values in times.values() for value in values)


def test_bench_encode_end_to_end(tmp_path, capsys, folder):
    out = tmp_path / "report.json"
    torch.set_num_threads(2)
    options = ["--seconds", "0", "--threads", "1", "--batch", "3", "--json", str(out)]
    assert main(["bench", "encode", "--size", str(folder), *options]) == 0
    assert torch.get_num_threads() == 2
    report = json.loads(out.read_text())
    assert report["machine"]["threads"] == 1
    rows = report["rows"]
    assert [(row["modality"], row["dtype"]) for row in rows] == [
        (key, dtype) for dtype in ("float32", "bfloat16") for key in ("text", "image", "audio")
    ]
    assert [row["tokens"] for row in rows] == [15, 5, 64] * 2
    for row in rows:
        assert row["batch"] == 3
        assert row["rounds"] == MIN_ROUNDS
        assert row["baseline"] is None
        for name in ("items_per_second", "limit_gflops", "fraction_of_limit"):
            assert 0 < row[name]["low"] <= row[name]["median"] <= row[name]["high"]
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if line.startswith("|")]) == 2 + len(rows)
    assert "1 threads" in printed[-1]


def test_batch_fills_the_tokens_it_may(folder):
    report = bench_encode(Settings([str(folder)], ["text"], [torch.float32], CPU, 0, None, False), lambda _: None)
    (row,) = report["rows"]
    assert row["batch"] == 64
    assert row["batch"] * row["tokens"] <= encode.BATCH_TOKENS < 2 * row["batch"] * row["tokens"]


class Tower(nn.Module):
    """Stands in for open_clip's tower."""

    output_dim = 7

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(3, 7)

    def forward(self, pixels):
        return self.proj(pixels.mean((2, 3)))


def test_baseline_runs_beside_the_pictures_of_the_base_size(folder, monkeypatch):
    make = encode.make
    monkeypatch.setattr(encode, "make", lambda size: make(str(folder)))
    monkeypatch.setattr(encode, "_baseline", Tower)
    report = bench_encode(Settings(["base"], None, [torch.bfloat16], CPU, 0, 2, True), lambda _: None)
    with_baseline = {row["modality"]: row["baseline"] for row in report["rows"]}
    assert with_baseline["text"] is None
    assert with_baseline["audio"] is None
    assert with_baseline["image"]["items_per_second"]["median"] > 0
    assert with_baseline["image"]["ours_over_baseline"]["median"] > 0
    assert with_baseline["image"]["gflop_per_item"] == 2 * 3 * 7 / 1e9
    assert " x its " in encode.table(report)


def test_baseline_that_gives_no_numbers_is_not_compared(folder, monkeypatch):
    baseline = Tower()
    torch.nn.init.constant_(baseline.proj.bias, torch.nan)
    make = encode.make
    monkeypatch.setattr(encode, "make", lambda size: make(str(folder)))
    monkeypatch.setattr(encode, "_baseline", lambda: baseline)
    with pytest.raises(RuntimeError, match="vectors of shape"):
        bench_encode(Settings(["base"], ["image"], [torch.float32], CPU, 0, 1, True), lambda _: None)


def test_flops_of_a_module_leave_it_as_it_is():
    baseline = Tower()
    assert encode.module_flops(baseline, torch.zeros(5, 3, 8, 8)) == 5 * 2 * 3 * 7
    assert baseline.proj.weight.device == CPU
    assert baseline.proj.weight.requires_grad


def test_missing_baseline_is_told_and_nothing_else_is_disturbed(folder, monkeypatch):
    make = encode.make
    monkeypatch.setattr(encode, "make", lambda size: make(str(folder)))
    monkeypatch.setitem(encode._baseline.__globals__, "BASELINE", "no such model")
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    notes = []
    report = bench_encode(Settings(["base"], ["image"], [torch.float32], CPU, 0, 1, True), notes.append)
    assert [row["baseline"] for row in report["rows"]] == [None]
    assert notes[0].startswith("no comparison with open_clip: ")


def test_vectors_that_are_no_unit_vectors_are_not_timed(folder, monkeypatch):
    candidate = encode.make(str(folder))
    with torch.no_grad():
        candidate.module.heads["image"].weight[0, 0] = torch.nan
    monkeypatch.setattr(encode, "make", lambda size: candidate)
    with pytest.raises(RuntimeError, match="vectors of shape"):
        bench_encode(Settings(["x"], ["image"], [torch.float32], CPU, 0, 1, False), lambda _: None)


def test_base_size_takes_the_pictures_of_the_baseline():
    config = random_config("base")
    assert picture_size(config) == encode.BASELINE_SIZE
    assert (config.model.dim, config.model.depth, config.model.num_heads) == (768, 12, 12)  # those of ViT-B
    assert config.model.adapters["image"]["grid"] ** 2 == 14**2
    assert config.model.decoder is None


def test_texts_are_real_ones_of_one_length(folder):
    config = encode.make(str(folder)).config
    ids = item_batch(config, "text", 9, 4)["ids"]
    assert ids.shape == (4, 9)
    assert (ids[:, -1] == 2).all()
    assert (ids[:, :-1] > 3).all()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch", "0"], 2, "--batch: '0' is not a whole number from 1 up"),
        (["--dtypes", "float23"], 1, "dtype 'float23' is not known"),
        (["--dtypes", "float16"], 1, "dtype float16 is not computed on a CPU"),
        (["--device", "gpu"], 1, "device 'gpu' is not available here"),
        (["--modalities", "smell", "--size", "FOLDER"], 1, "makes no vectors of 'smell', only of text, image, audio"),
        (
            ["--json", "FOLDER", "--size", "FOLDER", "--seconds", "0", "--modalities", "text", "--threads", "1"],
            1,
            "cannot be written",
        ),
    ],
)
def test_wrong_options_are_one_line(capsys, folder, arguments, code, message):
    assert main(["bench", "encode", *(str(folder) if a == "FOLDER" else a for a in arguments)]) == code
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1]


@pytest.fixture(scope="module", params=[1, 2])
def comparison(request):
    """Our step and the plain one of a stage over texts, and sounds, of many lengths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onepeace.cost.items.CLIP_SECONDS", (0.2, 1.0))
        recipe = plain_step.make_recipe(request.param, "tiny", 5, {"depth": 2})
        settings = train.Settings(recipe, None, [], CPU, 0)
        return train.Comparison(recipe.data.train[0].name, settings, plain_step.make_plain_step)


def test_plain_step_has_the_losses_and_gradients_of_ours(comparison):
    lengths = comparison.model.adapters["text"].token_lengths(comparison.batch.inputs["text"])
    assert len(set(lengths.tolist())) > 1
    assert set(lengths.tolist()) <= set(CAPTION_TOKENS)
    (ours, our_gradients), (plain, gradients) = comparison.gradients("ours"), comparison.gradients("baseline")
    assert ours.keys() == plain.keys()
    assert len(ours) == (6 if "image" in comparison.batch.inputs else 5)
    for name, value in plain.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=1e-5), name
    trained = {name for name, parameter in comparison.model.named_parameters() if parameter.requires_grad}
    assert our_gradients.keys() == gradients.keys() <= trained
    for name, gradient in gradients.items():
        assert (our_gradients[name] - gradient).norm() <= 5e-4 * gradient.norm() + 1e-7, name


def test_step_shares_stems_and_padding_where_the_plain_one_does_not(comparison):
    share = comparison.peak("ours", torch.float32) / comparison.peak("baseline", torch.float32)
    assert share < 0.85  # a count, not a time
    padding = comparison.padding()
    assert padding["ours"] <= padding["baseline"]
    if "audio" in comparison.batch.inputs:
        assert padding["ours"] < 0.12 < padding["baseline"]


def test_steps_that_differ_are_not_timed(comparison, monkeypatch):
    monkeypatch.setattr(plain_step, "SCALE", 3.0)
    with pytest.raises(RuntimeError, match="the two ways differ: the loss loss is"):
        comparison.check()


def test_bench_train_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr("onepeace.cost.items.CLIP_SECONDS", (0.2, 1.0))
    recipe = plain_step.make_recipe(2, "tiny", 4, checkpoint_activations=True)
    (tmp_path / "stage2.yaml").write_text(to_yaml(recipe))
    out = tmp_path / "report.json"
    options = ["model.depth=2", "--dtypes", "bfloat16", "--seconds", "0", "--threads", "1", "--json", str(out)]
    assert main(["bench", "train", str(tmp_path / "stage2.yaml"), *options]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["pair"], row["dtype"], row["batch"]) == ("audio+text", "bfloat16", 4)
    assert row["checkpointed"]
    assert row["rounds"] == MIN_ROUNDS
    assert 0 < row["baseline_over_ours"]["low"] <= row["baseline_over_ours"]["median"]
    assert row["memory_ours_over_baseline"] < 1
    assert row["padding"]["ours"] < 0.12 < row["padding"]["baseline"]
    assert row["teraflops"]["median"] > 0


def test_bench_loss_end_to_end(tmp_path, capsys):
    out = tmp_path / "report.json"
    options = ["--sizes", "64,2048,4096", "--dim", "16", "--seconds", "0", "--threads", "1", "--json", str(out)]
    assert main(["bench", "loss", *options]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["loss"], row["size"]) for row in rows] == [
        (kind, size) for kind in ("contrastive", "denoising") for size in (64, 2048, 4096)
    ]
    for _, middle, large in (rows[:3], rows[3:]):
        assert large["peak_bytes"]["full"] > 3.8 * middle["peak_bytes"]["full"]
        assert large["peak_bytes"]["ours"] < 2.2 * 4 * TILE  # float32: a tile, and what is made of it
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]) == 2 + len(rows)


def test_losses_that_differ_are_not_timed(monkeypatch):
    comparison = loss.Comparison("contrastive", 8, 4, CPU)
    comparison.ways["full"] = lambda a, b, scale: loss.full_contrastive(a, b, 1.001 * scale)
    with pytest.raises(RuntimeError, match="the two ways differ: of the loss and its gradients"):
        comparison.check()


def test_live_counts_what_is_alive_at_once():
    known = torch.zeros(100)
    with Live([known]) as live:
        first = known[:50] + 1.0
        first = first.sum()
        second = torch.ones(10, dtype=torch.float64)
    assert live.peak == 4 * 50 + 4
    assert (first, len(second)) == (50, 10)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["loss", "--sizes", "1"], 2, "--sizes: '1' is not a whole number from 2 up"),
        (["loss", "--kinds", "hinge"], 2, "'hinge' is neither contrastive nor denoising"),
        (["train"], 2, "bench train needs a recipe"),
        (["loss", "x.yaml"], 2, "bench loss takes no recipe"),
    ],
)
def test_wrong_options_of_the_other_benchmarks(capsys, arguments, code, message):
    assert main(["bench", *arguments]) == code
    assert message in capsys.readouterr().err
