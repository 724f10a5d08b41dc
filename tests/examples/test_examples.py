"""Programs of examples/ do what their first lines say; add_a_modality.py: tests/model/test_new_modality.py."""

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
from support.readme import like_checkout

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_a_disk_is_searched_by_words_and_by_files(tmp_path, samples, monkeypatch, capsys):
    def run(*arguments, given=""):
        monkeypatch.setattr(sys, "argv", ["search_disk.py", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(given))
        runpy.run_path(str(EXAMPLES / "search_disk.py"), run_name="__main__")
        return capsys.readouterr().out

    hits = json.loads(run(tmp_path / "index", samples, "--ask", "waves on the beach"))["hits"]
    assert Path(hits[0]["path"]).name == "sea.ogg"
    said = run(tmp_path / "index", given=f"a cat\n{samples / 'sounds' / 'cat.ogg'}\n\n")
    assert "among 37 files" in said
    first, second = said.split("among 37 files?")[1:3]
    assert "cat.jpg" in first
    assert "cat.ogg" in first
    assert "cat.ogg" not in second  # a file that asks is not among the answers
    assert second.count("data/samples") == 5


@pytest.mark.usefixtures("quick_finetuning")
def test_the_notebook_finetunes_and_lists_errors(tmp_path, capsys):
    notebook = json.loads((EXAMPLES / "finetune_and_errors.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    namespace: dict[str, object] = {}
    with like_checkout(tmp_path):
        for cell in cells:
            exec(cell, namespace)  # noqa: S102
    out = capsys.readouterr().out
    assert out.split()[:5] == ["set", "metric", "before", "after", "gain"]
    assert out.count("nearest other:") == len(namespace["files"]) > 0
