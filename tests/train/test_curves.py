"""`python -m onepeace.train.curves`: every curve of every run, one line for what is no log, the file asked for."""

import json

import pytest

from onepeace.train.curves import main, read_curves

BOOKKEEPING = {
    "grad_norm": 1.5, "replaced": 0.25, "padding": 0.05, "lr": 1e-3, "items_per_second": 10.5, "data_wait": 0.01,
    "seconds": 0.5, "logit_scale": 20.0, "peak_gigabytes": 1.5,
}  # fmt: skip
"""What the loop logs besides losses and scores."""


def write_run(folder, steps):
    folder.mkdir(parents=True)
    lines = [{"step": step, "loss": 5 / step, "denoising/image": 1.0, **BOOKKEEPING} for step in range(10, steps, 10)]
    lines.append({"step": steps, "valid/emoji": 0.25})
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_every_loss_and_score_of_all_runs_is_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = [write_run(tmp_path / "a", 40), write_run(tmp_path / "b", 200)]
    curves = read_curves(tmp_path / "a")
    assert set(curves) == {"loss", "denoising/image", "valid/emoji"}
    assert curves["loss"] == [(step, 5 / step) for step in (10, 20, 30)]
    assert main([*runs, "-o", str(tmp_path / "x.svg")]) == 0
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")
    assert "3 curves of 2 runs" in capsys.readouterr().out
    assert main([*runs, "-o", str(tmp_path / "x.what")]) == 1
    assert "Format 'what' is not supported" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b'{"loss": 2.0}\n', b"\x89PNG\r\n\x1a\n\xff\x00"])
def test_a_file_that_is_no_log_is_named_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "log.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert main([str(tmp_path), "-o", str(tmp_path / "x.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
