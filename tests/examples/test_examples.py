"""Programs of examples/ do what their first lines say; add_a_modality.py: tests/model/test_new_modality.py."""

import io
import json
import runpy
import sys
from pathlib import Path

import pytest
from support.readme import like_checkout

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def search_disk(tmp_path, monkeypatch, capsys):
    """Runs the program on one index; gives what it prints."""

    def run(*arguments, stdin=""):
        command = ["search_disk.py", tmp_path / "index", *arguments]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in command])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        runpy.run_path(str(EXAMPLES / "search_disk.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_disk_is_searched_by_words_and_by_files(search_disk, samples):
    hits = json.loads(search_disk(samples, "--ask", "waves on the beach"))["hits"]
    assert Path(hits[0]["path"]).name == "sea.ogg"

    out = search_disk(stdin=f"a cat\n{samples / 'sounds' / 'cat.ogg'}\n\n")
    _, by_words, by_file = out.split("among 37 files?")[:3]
    assert "cat.jpg" in by_words
    assert "cat.ogg" in by_words
    assert "cat.ogg" not in by_file  # a file that asks is not among the answers
    assert by_file.count(str(samples)) == 5


@pytest.mark.usefixtures("quick_finetuning")
def test_notebook_finetunes_and_lists_errors(tmp_path, capsys):
    notebook = json.loads((EXAMPLES / "finetune_and_errors.ipynb").read_text(encoding="utf-8"))
    namespace: dict[str, object] = {}

    with like_checkout(tmp_path):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert not cell["outputs"]
                exec("".join(cell["source"]), namespace)  # noqa: S102

    out = capsys.readouterr().out
    assert out.split()[:5] == ["set", "metric", "before", "after", "gain"]
    assert out.count("nearest other:") == len(namespace["files"]) > 0
