"""The programs in examples/ do what their first lines say, as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

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
    assert said.count("cat.ogg") == 2
