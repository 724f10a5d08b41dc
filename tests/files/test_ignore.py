"""Which files are left out: as git does it."""

import os
import re
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


ALL = ["a.txt", "b.txt", "build/c.txt", "sub/a.txt", "sub/build/d.txt", "sub/deep/a.txt"]


@pytest.fixture
def tree(tmp_path):
    for name in ALL:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["/a.txt", "build/"], ["b.txt", "sub/a.txt", "sub/deep/a.txt"]),
        (["a.txt"], ["b.txt", "build/c.txt", "sub/build/d.txt"]),
        (
            ["sub/**/*.txt", "!sub/deep/a.txt"],
            ["a.txt", "b.txt", "build/c.txt", "sub/deep/a.txt"],
        ),
        (["# a.txt", "", "*.jpg"], ALL),
    ],
)
def test_patterns_are_those_of_git(tree, patterns, expected):
    assert kept(tree, patterns) == expected


def test_files_of_deeper_folders_take_precedence(tree):
    (tree / ".onepeaceignore").write_text("a.txt\nbuild/\n")
    assert kept(tree) == ["b.txt"]

    (tree / "sub" / ".onepeaceignore").write_text("!a.txt\n/deep/\n")
    assert kept(tree) == ["b.txt", "sub/a.txt"]


def test_patterns_of_the_caller_take_precedence(tree):
    (tree / ".onepeaceignore").write_text("a.txt\nbuild/\n")
    assert kept(tree, ["!build/", "b.txt"]) == ["build/c.txt", "sub/build/d.txt"]


def test_file_may_begin_with_a_byte_order_mark(tree):
    (tree / ".onepeaceignore").write_bytes(b"\xef\xbb\xbf/a.txt\n")
    assert kept(tree) == ALL[1:]


def test_names_need_not_be_utf8(tree):
    (tree / ".onepeaceignore").write_bytes(b"caf\xe9.txt\n")
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9.txt")).touch()
    assert kept(tree) == ALL


MANY_STARS = """
from onepeace.files.globs import Globs
for pattern in ("*a" * 100 + "b", "**/a/" * 100 + "b", "?*" * 100 + "b", "[a-z]*" * 100 + "1"):
    assert Globs([pattern], "a test").verdict("a/" * 100 + "a" * 200) is None
"""


def test_many_stars_do_not_hang():
    """A regular expression that tries all ways in which the stars can share a path would not end."""
    subprocess.run([sys.executable, "-c", MANY_STARS], check=True, timeout=120)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("!", "'!'"),
        ("[z-a]", "range"),
    ],
)
def test_invalid_pattern_is_an_error(tree, pattern, words):
    with pytest.raises(UserError, match=rf"^--exclude: .*{words}"):
        Ignore(tree, [pattern])


def write_pattern(path):
    path.write_text("*.jpg\n!\n")


def write_sparse(path):
    with open(path, "wb") as file:
        file.truncate(3 << 30)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_pattern, "'!'"),
        (write_sparse, "has more than 1048576 characters"),
        (os.mkfifo, "cannot be read .*not a regular file"),
        (os.mkdir, "cannot be read"),
    ],
)
@pytest.mark.parametrize("patterns", [(), ("d.txt",)])
def test_folder_whose_file_cannot_be_used_is_named_and_left_out(tree, write, words, patterns):
    write(tree / "sub" / ".onepeaceignore")
    files, unreadable = walk([tree], {".txt": "text"}, Ignore(tree, patterns))

    assert [path.relative_to(tree).as_posix() for path, _ in files] == ["a.txt", "b.txt", "build/c.txt"]
    ((folder, reason),) = unreadable
    assert folder == tree / "sub"
    assert re.search(rf"^\.onepeaceignore: .*{words}", reason)
