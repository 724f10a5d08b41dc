"""`onepeace bench index`: filling an index beside its limits."""

import json
import shutil

import pytest

from onepeace.bench import index as module
from onepeace.cli import main


def test_bench_index_end_to_end(tmp_path, capsys, samples, random_folder, monkeypatch):
    for name in ("images/owl.jpg", "images/bus.jpg", "sounds/dog.ogg"):
        shutil.copy(samples / name, tmp_path)
    (tmp_path / "words.txt").write_text("a dog barks")
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    computed = []
    real = module.take_turns

    def once(ways, seconds, device):
        for way, call in ways.items():
            computed.append((way, call()))
        return real(ways, seconds, device)

    monkeypatch.setattr(module, "take_turns", once)
    out = tmp_path / "report.json"
    options = ["--model", str(random_folder), "--seconds", "0", "--threads", "1", "--json", str(out)]
    assert main(["bench", "index", str(tmp_path), *options]) == 0
    assert [way for way, _ in computed] == ["decode", "model", "build"]
    reports = dict(computed)
    for report in (reports["decode"], reports["build"]):
        assert (report.added, report.vectors) == (4, 6)  # the dog is heard in three windows
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["files"], row["vectors"], row["problems"]) == (4, 6, 1)
    seconds = {way: values["median"] for way, values in row["seconds"].items()}
    assert seconds["limit"] <= seconds["sum"]
    assert row["time_over_sum"]["median"] <= row["time_over_limit"]["median"]
    assert "4 (1 broken)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [([], "bench index needs folders or files"), (["empty"], "empty: no picture, sound or text in it")],
)
def test_nothing_to_index_is_an_error_of_one_line(given, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "index", *given]) == 2
    assert message in capsys.readouterr().err
