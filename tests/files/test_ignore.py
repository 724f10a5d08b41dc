"""Which files are left out: as git does it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onepeace.errors import UserError
from onepeace.files.ignore import Ignore
from onepeace.files.walk import walk


def kept(folder, patterns=()):
    files, _ = walk([folder], {".txt": "text"}, Ignore(folder, patterns))
    return [str(path.relative_to(folder)) for path, _ in files]


@pytest.fixture
def tree(tmp_path):
    for name in ("a.txt", "b.txt", "build/c.txt", "sub/a.txt", "sub/build/d.txt", "sub/deep/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["/a.txt", "build/"], ["b.txt", "sub/a.txt", "sub/deep/a.txt"]),
        (["a.txt"], ["b.txt", "build/c.txt", "sub/build/d.txt"]),
        (["sub/**/*.txt", "!sub/deep/a.txt"], ["a.txt", "b.txt", "build/c.txt", "sub/deep/a.txt"]),
        (["# a.txt", "", "*.jpg"], ["a.txt", "b.txt", "build/c.txt", "sub/a.txt", "sub/build/d.txt", "sub/deep/a.txt"]),
    ],
)
def test_patterns_are_those_of_git(tree, patterns, expected):
    assert kept(tree, patterns) == expected


def test_deeper_files_come_later_and_the_given_patterns_last(tree):
    (tree / ".onepeaceignore").write_text("a.txt\nbuild/\n")
    assert kept(tree) == ["b.txt"]
    (tree / "sub" / ".onepeaceignore").write_text("!a.txt\n/deep/\n")
    assert kept(tree) == ["b.txt", "sub/a.txt"]
    assert kept(tree, ["!build/", "b.txt"]) == ["build/c.txt", "sub/a.txt", "sub/build/d.txt"]


def test_mark_of_a_spreadsheet_and_names_that_are_no_utf8(tree):
    (tree / ".onepeaceignore").write_bytes(b"\xef\xbb\xbf/a.txt\ncaf\xe9.txt\n")
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9.txt")).touch()
    assert kept(tree)[0] == "b.txt"
    assert not [name for name in kept(tree) if "caf" in name]


PATTERNS = """
from onepeace.files.globs import Globs
for pattern in ("*a" * 100 + "b", "**/a/" * 100 + "b", "?*" * 100 + "b", "[a-z]*" * 100 + "1"):
    assert Globs([pattern], "a test").verdict("a/" * 100 + "a" * 200) is None
"""


def test_many_stars_take_no_time():
    """As an expression that tries all ways in which stars share a path, this would not end."""
    subprocess.run([sys.executable, "-c", PATTERNS], check=True, timeout=120)


def test_what_cannot_be_understood_is_an_error(tree):
    with pytest.raises(UserError, match=r"^--exclude: Invalid git pattern: '!'"):
        Ignore(tree, ["!"])
    with pytest.raises(UserError, match=r"^--exclude: bad character range"):
        Ignore(tree, ["[z-a]"])
    (tree / "sub" / ".onepeaceignore").write_text("!\n")
    with pytest.raises(UserError, match=r"sub/.onepeaceignore: Invalid git pattern"):
        kept(tree)
    (tree / "sub" / ".onepeaceignore").unlink()
    (tree / "sub" / ".onepeaceignore").mkdir()
    with pytest.raises(UserError, match=r"sub/.onepeaceignore: cannot be read \(Is a directory\)"):
        kept(tree)
