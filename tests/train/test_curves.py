"""`python -m onepeace.train.curves`: every curve of every run, one line for what is no log, the file asked for."""

import json
from pathlib import Path

import pytest

from onepeace.train import curves as plot
from onepeace.train.curves import main
from onepeace.train.log import Log

BOOKKEEPING = {
    "grad_norm": 1.5, "replaced": 0.25, "padding": 0.05, "lr": 1e-3, "items_per_second": 10.5, "data_wait": 0.01,
    "seconds": 0.5, "logit_scale": 20.0, "peak_gigabytes": 1.5,
}  # fmt: skip
"""What the loop logs besides losses and scores."""


def write_run(folder, steps, offset=0.0):
    folder.mkdir(parents=True)
    lines = [
        {"step": step, "loss": 5 / step + offset, "denoising/image": 1.0, **BOOKKEEPING}
        for step in range(10, steps + 1, 10)
    ]
    lines.append({"step": steps, "valid/emoji": 0.25 + offset, "valid": {"esc50": {"top1": 0.5}}})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_plot_draws_every_loss_and_score_of_all_runs(tmp_path, capsys, monkeypatch):
    drawn = {}
    draw = plot.draw
    monkeypatch.setattr(plot, "draw", lambda curves, output: (drawn.update(curves), draw(curves, output)))
    runs = [write_run(tmp_path / "runs" / name, steps) for name, steps in (("a", 40), ("b", 2000))]
    assert main([*runs, "-o", str(tmp_path / "new" / "plot.png")]) == 0
    assert {name: set(curves) for name, curves in drawn.items()} == {
        name: {"loss", "denoising/image", "valid/emoji", "valid/esc50/top1"} for name in ("a", "b")
    }
    assert drawn["a"]["loss"] == [(step, 5 / step) for step in (10, 20, 30, 40)]
    assert "4 curves of 2 runs" in capsys.readouterr().out
    from PIL import Image

    with Image.open(tmp_path / "new" / "plot.png") as picture:
        assert picture.width > 600
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 24)}
    assert {tuple(bytes.fromhex(color[1:])) for color in plot.COLORS[:2]} <= colors


def test_plot_draws_scores_measured_once_as_bars_in_one_panel(tmp_path):
    """Twenty of them, as every recipe measures at its end, were twenty panels with a dot each."""
    from PIL import Image

    folder = Path(write_run(tmp_path / "run", 40))
    with open(folder / "log.jsonl", "a") as log:
        log.write(json.dumps({"step": 40, **{f"valid/set{i}/top-1": i / 20 for i in range(20)}}) + "\n")
    assert main([str(folder), "-o", str(tmp_path / "plot.png")]) == 0
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.height < 1.5 * picture.width


def test_plot_names_a_run_by_what_distinguishes_it(tmp_path):
    runs = [write_run(tmp_path / "x" / "seed1", 20), write_run(tmp_path / "y" / "seed1", 20)]
    assert list(plot.labels(runs)) == ["x/seed1", "y/seed1"]
    assert list(plot.labels([f"{runs[0]}/log.jsonl"])) == ["seed1"]


def test_plot_of_nothing_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path), "-o", str(tmp_path / "x.png")]) == 1
    assert "log.jsonl: no such file" in capsys.readouterr().err
    run = write_run(tmp_path / "a", 20)
    assert main([run, "-o", str(tmp_path / "x.png"), "--from-step", "30"]) == 1
    assert "nothing to draw" in capsys.readouterr().err


def test_plot_tells_losses_from_scores():
    assert [plot.is_loss(name) for name in ("loss", "denoising/text", "own_term/image", "valid/emoji")] == [
        True, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"step": 1, "loss": 2.0}\n5\n', "line 2 is no record of a step"),
        (b'{"loss": 2.0}\n', "line 1 is no record of a step"),
        (b"\x89PNG\r\n\x1a\n\xff\x00", "nothing to draw"),
    ],
)
def test_plot_says_in_one_line_which_file_is_no_log(tmp_path, capsys, content, said):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    assert main([str(path), "-o", str(tmp_path / "x.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
    assert said in line


def test_plot_writes_what_the_ending_says(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Log("run").write(1, {"loss": 2.0})
    assert main(["run"]) == 0
    assert capsys.readouterr().out.startswith("losses.png: ")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    for output, begin in (("x.pdf", b"%PDF"), ("x.svg", b"<?xml"), ("x", b"\x89PNG")):
        assert main(["run", "-o", output]) == 0
        assert (tmp_path / output).read_bytes().startswith(begin)
    assert main(["run", "-o", "x.what"]) == 1
    assert "x.what: Format 'what' is not supported" in capsys.readouterr().err
