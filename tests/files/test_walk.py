"""Walking folders: which files are found, in which order, and what cannot be read on the way."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from onepeace.errors import UsageError
from onepeace.files.walk import LINKS, walk

SUFFIXES = {".jpg": "image", ".ogg": "audio", ".txt": "text"}


def found(paths, folder, **options):
    files, unreadable = walk(paths, SUFFIXES, **options)
    return [(str(path.relative_to(folder)), kind) for path, kind in files], [
        (str(path.relative_to(folder)), reason) for path, reason in unreadable
    ]


@pytest.fixture
def tree(tmp_path):
    for name in ("b.JPG", "a.txt", "sub/c.ogg", "sub/.hidden.ogg", ".git/d.jpg", "notes.md", "a/deep/e.jpg"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "tree"


def test_known_endings_are_taken_in_order_and_the_others_counted(tree):
    others = Counter()
    files, unreadable = found([tree], tree, others=others)
    assert files == [("a.txt", "text"), ("b.JPG", "image"), ("a/deep/e.jpg", "image"), ("sub/c.ogg", "audio")]
    assert (unreadable, others) == ([], {".md": 1})


def test_a_named_file_is_taken_whatever_it_is_called(tree):
    files, _ = found([tree / "notes.md", tree / "sub" / ".hidden.ogg", tree / "b.JPG"], tree)
    assert files == [("notes.md", ""), ("sub/.hidden.ogg", "audio"), ("b.JPG", "image")]


def test_each_file_is_given_once(tree, monkeypatch):
    monkeypatch.chdir(tree)
    files, _ = walk(["sub", "a.txt", tree / "a.txt", ".", "sub/c.ogg"], SUFFIXES)
    assert [str(path) for path, _ in files] == ["sub/c.ogg", "a.txt", "b.JPG", "a/deep/e.jpg"]


def test_loops_and_links(tree):
    (tree / "sub" / "loop").symlink_to(tree / "sub")
    (tree / "sub" / "link.jpg").symlink_to(tree / "b.JPG")
    (tree / "sub" / "broken.jpg").symlink_to(tree / "nothing")
    (tree.parent / "secret.txt").write_text("x")
    (tree / "sub" / "out.txt").symlink_to(tree.parent / "secret.txt")
    os.mkfifo(tree / "pipe.jpg")
    others = Counter()
    files, unreadable = found([tree], tree, others=others)
    assert ("sub/link.jpg", "image") in files
    assert (len(files), others[LINKS]) == (5, 1)
    assert unreadable == [("pipe.jpg", "not a regular file"), ("sub/broken.jpg", "a link to nothing")]
    assert ("sub/out.txt", "text") in found([tree], tree, follow_links=True)[0]


def test_files_have_their_real_path_where_a_link_to_their_folder_is_met_first(tree):
    (tree / "a" / "link").symlink_to(tree / "sub")
    (tree / "hidden").symlink_to(tree / ".git")
    for options in ({}, {"follow_links": True}):
        assert [path for path, _ in found([tree], tree, **options)[0]] == [
            "a.txt", "b.JPG", "a/deep/e.jpg", "sub/c.ogg", "hidden/d.jpg",
        ]  # fmt: skip


def test_a_folder_it_may_not_read_is_reported(tree, monkeypatch):
    scandir = os.scandir

    def guarded(path):
        if os.fspath(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)  # root may read anything
    files, unreadable = found([tree], tree)
    assert (len(files), unreadable) == (3, [("sub", "Permission denied")])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")
def test_folder_whose_entries_cannot_be_looked_at_is_reported(tree):
    (tree / "sub" / "below").mkdir()
    (tree / "sub").chmod(0o644)
    program = f"""
import os
from onepeace.files.walk import walk
os.chdir({str(tree)!r})
os.setuid(65534)
files, unreadable = walk(["."], {SUFFIXES!r})
print([path.name for path, _ in files], [(path.name, reason) for path, reason in unreadable])
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == (
        "['a.txt', 'b.JPG', 'e.jpg'] [('c.ogg', 'Permission denied'), ('below', 'Permission denied')]\n"
    )


def test_path_that_is_too_long_is_reported(tree, monkeypatch):
    monkeypatch.chdir(tree / "sub")
    for _ in range(20):
        os.mkdir(250 * "x")
        os.chdir(250 * "x")
    Path("deep.txt").write_text("x")
    monkeypatch.chdir(tree)
    files, unreadable = walk([tree], SUFFIXES)
    assert len(files) == 4
    assert [reason for _, reason in unreadable] == ["File name too long"]


def test_a_path_that_is_not_there_is_named(tree):
    with pytest.raises(UsageError, match="nothing"):
        walk([tree, tree / "nothing"], SUFFIXES)
