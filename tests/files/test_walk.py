"""Walking folders: which files are found, in which order, and what cannot be read on the way."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from onepeace.errors import UsageError, UserError
from onepeace.files.walk import LINKS, Ignore, walk

SUFFIXES = {".jpg": "image", ".ogg": "audio", ".txt": "text"}
NAMES = ["a.txt", "b.JPG", "a/deep/e.jpg", "sub/c.ogg"]
"""The files in the tree that are found, in order."""


@pytest.fixture
def tree(tmp_path):
    for name in (*NAMES, "sub/.hidden.ogg", ".git/d.jpg", "notes.md"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "tree"


def relative(pairs, tree):
    return [(str(path.relative_to(tree)), value) for path, value in pairs]


def names(tree, *paths, **options):
    """The names of the files that are found below the tree, or at paths in it."""
    files, _ = walk(paths or [tree], SUFFIXES, **options)
    return [name for name, _ in relative(files, tree)]


def test_known_endings_are_taken_in_order_and_the_others_counted(tree):
    counts = Counter()
    files, unreadable = walk([tree], SUFFIXES, others=counts)

    assert relative(files, tree) == list(zip(NAMES, ["text", "image", "image", "audio"], strict=True))
    assert unreadable == []
    assert counts == {".md": 1}


def test_named_file_is_taken_whatever_its_ending(tree):
    files, _ = walk([tree / "notes.md", tree / "sub" / ".hidden.ogg", tree / "b.JPG"], SUFFIXES)
    assert relative(files, tree) == [
        ("notes.md", ""),
        ("sub/.hidden.ogg", "audio"),
        ("b.JPG", "image"),
    ]


def test_each_file_is_given_once(tree, monkeypatch):
    monkeypatch.chdir(tree)
    files, _ = walk(["sub", "a.txt", tree / "a.txt", ".", "sub/c.ogg"], SUFFIXES)
    assert [str(path) for path, _ in files] == ["sub/c.ogg", "a.txt", "b.JPG", "a/deep/e.jpg"]


def test_path_that_does_not_exist_is_an_error(tree):
    with pytest.raises(UsageError, match="nothing"):
        walk([tree, tree / "nothing"], SUFFIXES)


# Links


def test_loop_of_links_ends(tree):
    (tree / "sub" / "loop").symlink_to(tree / "sub")
    assert names(tree) == NAMES


def test_link_out_of_the_folder_is_followed_on_demand(tree):
    (tree.parent / "secret.txt").write_text("x")
    (tree / "sub" / "out.txt").symlink_to(tree.parent / "secret.txt")
    counts = Counter()

    assert names(tree, others=counts) == NAMES
    assert counts[LINKS] == 1
    assert names(tree, follow_links=True) == [*NAMES, "sub/out.txt"]


@pytest.mark.parametrize("follow_links", [False, True])
def test_file_has_its_real_path_where_a_link_is_met_first(tree, follow_links):
    (tree / "a" / "link").symlink_to(tree / "sub")
    (tree / "hidden").symlink_to(tree / ".git")

    assert names(tree, follow_links=follow_links) == [*NAMES, "hidden/d.jpg"]


# What cannot be read


def test_pipes_and_links_to_nothing_are_reported(tree):
    (tree / "sub" / "broken.jpg").symlink_to(tree / "nothing")
    os.mkfifo(tree / "pipe.jpg")

    files, unreadable = walk([tree], SUFFIXES)

    assert [name for name, _ in relative(files, tree)] == NAMES
    assert relative(unreadable, tree) == [
        ("pipe.jpg", "not a regular file"),
        ("sub/broken.jpg", "a link to nothing"),
    ]


AS_ANOTHER_USER = """
import os, sys
from onepeace.files.walk import walk
os.chdir(sys.argv[1])
os.setuid(65534)
files, unreadable = walk(["."], {".jpg": "image", ".ogg": "audio", ".txt": "text"})
print(*(path.name for path, _ in files))
print(*(f"{path.name}: {reason}" for path, reason in unreadable), sep=", ")
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")
def test_folder_whose_entries_cannot_be_looked_at_is_reported(tree):
    (tree / "sub" / "below").mkdir()
    (tree / "sub").chmod(0o644)

    output = subprocess.check_output([sys.executable, "-c", AS_ANOTHER_USER, str(tree)], text=True)

    assert output.splitlines() == [
        "a.txt b.JPG e.jpg",
        "c.ogg: Permission denied, below: Permission denied",
    ]


@pytest.mark.parametrize(("count", "length"), [(20, 250), (300, 15)])
def test_path_that_is_too_long_is_reported(tree, monkeypatch, count, length):
    monkeypatch.chdir(tree / "sub")
    for _ in range(count):
        os.mkdir(length * "x")
        os.chdir(length * "x")
    Path("deep.txt").write_text("x")
    monkeypatch.chdir(tree)

    files, unreadable = walk([tree], SUFFIXES, Ignore(tree))

    assert len(files) == len(NAMES)
    ((_, reason),) = unreadable
    assert "File name too long" in reason


def kept(folder, patterns=()):
    files, _ = walk([folder], {".txt": "text"}, Ignore(folder, patterns))
    return [str(path.relative_to(folder)) for path, _ in files]


ALL = ["a.txt", "b.txt", "build/c.txt", "sub/a.txt", "sub/build/d.txt", "sub/deep/a.txt"]


@pytest.fixture
def patterned(tmp_path):
    for name in ALL:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["/a.txt", "build/"], ["b.txt", "sub/a.txt", "sub/deep/a.txt"]),
        (
            ["sub/**/*.txt", "!sub/deep/a.txt"],
            ["a.txt", "b.txt", "build/c.txt", "sub/deep/a.txt"],
        ),
    ],
)
def test_patterns_are_those_of_git(patterned, patterns, expected):
    assert kept(patterned, patterns) == expected


def test_files_of_deeper_folders_take_precedence(patterned):
    (patterned / ".onepeaceignore").write_text("a.txt\nbuild/\n")
    assert kept(patterned) == ["b.txt"]

    (patterned / "sub" / ".onepeaceignore").write_text("!a.txt\n/deep/\n")
    assert kept(patterned) == ["b.txt", "sub/a.txt"]


def test_patterns_of_the_caller_take_precedence(patterned):
    (patterned / ".onepeaceignore").write_text("a.txt\nbuild/\n")
    assert kept(patterned, ["!build/", "b.txt"]) == ["build/c.txt", "sub/build/d.txt"]


def test_names_need_not_be_utf8(patterned):
    (patterned / ".onepeaceignore").write_bytes(b"caf\xe9.txt\n")
    Path(os.fsdecode(os.fsencode(patterned) + b"/caf\xe9.txt")).touch()
    assert kept(patterned) == ALL


MANY_STARS = """
from onepeace.files.walk import Globs
for pattern in ("*a" * 100 + "b", "**/a/" * 100 + "b", "?*" * 100 + "b", "[a-z]*" * 100 + "1"):
    assert Globs([pattern], "a test").verdict("a/" * 100 + "a" * 200) is None
"""


def test_many_stars_do_not_hang():
    """A regular expression that tries all ways in which the stars can share a path would not end."""
    subprocess.run([sys.executable, "-c", MANY_STARS], check=True, timeout=120)


def test_invalid_pattern_is_an_error(patterned):
    with pytest.raises(UserError, match=r"^--exclude: .*range"):
        Ignore(patterned, ["[z-a]"])


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
    ],
)
@pytest.mark.parametrize("patterns", [(), ("d.txt",)])
def test_folder_whose_file_cannot_be_used_is_named_and_left_out(patterned, write, words, patterns):
    write(patterned / "sub" / ".onepeaceignore")
    files, unreadable = walk([patterned], {".txt": "text"}, Ignore(patterned, patterns))

    assert [path.relative_to(patterned).as_posix() for path, _ in files] == ["a.txt", "b.txt", "build/c.txt"]
    ((folder, reason),) = unreadable
    assert folder == patterned / "sub"
    assert re.search(rf"^\.onepeaceignore: .*{words}", reason)


@pytest.mark.parametrize(("name", "depth"), [("x", 1100), ("a name of 24 characters", 180)])
def test_nested_folders_are_entered_as_far_as_the_system_has_paths_for_them(tree, name, depth):
    """More folders, each in the one before, than Python calls itself; or a longer path than the system takes."""
    folder = os.open(tree, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(os.open("last.txt", os.O_CREAT, dir_fd=folder))
    os.close(folder)
    try:
        files, unreadable = walk([tree], SUFFIXES, None if name == "x" else Ignore(tree))
    finally:
        subprocess.run(["rm", "-r", tree], check=True)  # pytest would call itself for each of them too

    assert len(files) == (5 if name == "x" else 4)
    assert [problem.reason for problem in unreadable] == ([] if name == "x" else ["File name too long"])
