"""Programs of examples/ do what their first lines say.

add_a_modality.py: tests/model/test_new_modality.py; the notebook: tests/test_readme.py.
"""

import io
import json
import runpy
import sys
from pathlib import Path

import pytest

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
