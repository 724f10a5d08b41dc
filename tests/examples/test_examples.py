"""The programs in examples/ do what their first lines say, as a user runs them."""

import json
import re
import subprocess
import sys
from pathlib import Path

from support.readme import like_checkout

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object, given: str = "") -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_disk_is_searched_by_words_and_by_files(tmp_path, samples):
    hits = json.loads(run("search_disk.py", tmp_path / "index", samples, "--ask", "waves on the beach"))["hits"]
    assert Path(hits[0]["path"]).name == "sea.ogg"
    said = run("search_disk.py", tmp_path / "index", given=f"a cat\n{samples / 'sounds' / 'cat.ogg'}\n\n")
    assert "among 37 files" in said
    assert said.count("cat.jpg") == 2  # the answer to both; a file that asks is not among the answers


def test_the_notebook_finetunes_and_lists_errors(tmp_path, capsys):
    notebook = json.loads((EXAMPLES / "finetune_and_errors.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    namespace: dict[str, object] = {}
    with like_checkout(tmp_path):
        for cell in cells:
            exec(cell, namespace)  # noqa: S102
    out = capsys.readouterr().out
    assert "A: before, B: after" in out
    assert out.count("nearest other:") == len(namespace["files"]) > 0


def test_a_modality_is_added(tmp_path):
    said = run("add_a_modality.py", tmp_path)
    right, of = map(int, re.search(r"(\d+) of (\d+) new files", said).groups())
    assert right >= 0.9 * of
