"""Globs over paths, in SQLite."""

import fnmatch
import os
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.errors import UsageError
from onepeace.index.path_glob import path_glob, register

HOME = b"/home/me"


@pytest.fixture(scope="module")
def connection():
    connection = sqlite3.connect(":memory:")
    register(connection)
    return connection


def fits(connection, path, pattern, folders=(HOME,)):
    condition = path_glob(pattern, folders)
    table = "(SELECT CAST(? AS BLOB) AS path) AS files"
    query = f"SELECT 1 FROM {table} WHERE {condition.sql}"  # noqa: S608
    return bool(connection.execute(query, (os.fsencode(path), *condition.params)).fetchall())


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("*.jpg", ["a.jpg", ".jpg"], ["b/a.jpg", "a.jpgs", "a.JPG"]),
        ("**/*.jpg", ["a.jpg", "b/a.jpg", "b/c/.jpg"], ["a.jpg/b"]),
        ("b/**", ["b/a", "b/c/d"], ["b", "bb/a", "c/b/a"]),
        ("**", ["a", "b/a"], []),
        ("b/**/a", ["b/a", "b/c/a", "b/c/d/a"], ["b/ca", "ba", "b/a/c"]),
        ("**/b/**/a?", ["b/ab", "c/b/d/ab"], ["b", "b/a", "cb/ab"]),
        ("b**/a", ["b/a", "bc/a"], ["b/c/a"]),
        ("[ab]-[!c-e][]x][!]x]", ["a-f]y", "b-fxy"], ["c-f]y", "a-d]y", "a-fxx", "a-/]y"]),
        ("[a-]*[^]", ["-^"], ["b^"]),
        ("[", ["["], ["a"]),
        ("a+(b|c)$.{2}\\d", ["a+(b|c)$.{2}\\d"], ["aab$"]),
        ("/home/*/x/**", ["x/a"], ["y/x/a"]),
        ("/**/a", ["a", "b/a"], ["ab"]),
        ("日?", ["日本", "日\udcff"], ["日"]),
        ("\udcff*", [b"\xff.jpg"], ["ÿ.jpg"]),
        ("a*b*c", ["abc", "a-b-b-c", "abcbc"], ["ab", "acb", "abcd", "a/bc"]),
    ],
)
def test_pattern_is_about_the_whole_path_or_below_a_folder(connection, pattern, fitting, others):
    for name in fitting:
        assert fits(connection, HOME + b"/" + os.fsencode(name), pattern), name
    for name in others:
        assert not fits(connection, HOME + b"/" + os.fsencode(name), pattern), name


def test_path_is_below_any_of_several_folders(connection):
    for folders in ([b"/c", b"/a/b", b"/a"], [b"/", b"/a/b/"]):
        assert fits(connection, "/a/b/x", "x", folders)
    assert fits(connection, "/x", "x", [b"/"])
    assert fits(connection, "/a/b/x", "b/x", [b"/a"])
    assert not fits(connection, "/ab/x", "x", [b"/a"])
    assert fits(connection, "/a+[b]/x", "x", [b"/a+[b]"])
    assert not fits(connection, "/axb/x", "x", [b"/a.b"])
    assert not fits(connection, "/a/b/x", "x", [])
    assert fits(connection, "/a/\udcff/x", "x", [b"/a/\xff"])
    assert fits(connection, "https://host/a/b.jpg", "https://**/*.jpg", [])
    assert fits(connection, "/data/0.tar::key", "/data/*::k?y", [])


def test_case_and_separators_are_those_of_the_system(connection, monkeypatch):
    assert not fits(connection, "/data/me/A.JPG", "*.jpg")
    monkeypatch.setattr(os.path, "normcase", str.lower)
    monkeypatch.setattr(os, "sep", "\\")
    windows = [b"C:\\Pictures"]
    for pattern in ("c:\\pictures\\*\\[a-c].jpg", "c:/**/B.jpg", "*/b.jpg"):
        assert fits(connection, "C:\\Pictures\\Cats\\b.JPG", pattern, windows), pattern


names = st.text("ab.", min_size=1, max_size=4)
patterns = st.lists(st.text("ab?*", min_size=1, max_size=5) | st.just("**"), min_size=1, max_size=5)


def expected(names, patterns):
    """The definition, which tries everything."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(expected(names[start:], patterns[1:]) for start in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], patterns[0]) and expected(names[1:], patterns[1:])


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.lists(names, min_size=1, max_size=5), patterns)
def test_fits_as_the_definition_says(connection, names, patterns):
    # What is below a folder is not the folder itself.
    wanted = expected(names, [*patterns, "*"] if patterns[-1] == "**" else patterns)
    assert fits(connection, "/".join(names), "/".join(patterns), []) == wanted


@pytest.mark.parametrize("pattern", ["*a" * 400 + "b", "**/a/" * 190 + "b", "**/*a*a*a*a*a*b/" * 60, "?*" * 400 + "b"])
def test_many_stars_take_no_time(connection, pattern):
    assert not fits(connection, b"/" + b"a" * 255 + b"/a" * 1500, pattern)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.text(st.characters(codec=None)) | st.text("[]!^-a&~|\\*?/"))
def test_any_text_is_a_pattern_or_an_error_of_one_line(connection, text):
    message = ""
    try:
        fits(connection, "/a/b", text)
    except UsageError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "path-glob: a pattern has 1 to 1,000 characters, not 0"),
        ("a" * 1001, "path-glob: a pattern has 1 to 1,000 characters, not 1,001"),
        ("[z-a]", r"path-glob: '\[z-a\]' is not a pattern \(bad character range z-a at position .*\)"),
    ],
)
def test_wrong_pattern_is_a_usage_error(pattern, message):
    with pytest.raises(UsageError, match=f"^{message}$"):
        path_glob(pattern)
