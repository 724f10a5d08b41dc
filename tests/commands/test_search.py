"""`onepeace search` on real files with broken ones among them: hits as a table and as JSON, and what is refused."""

import io
import json
import os
import shutil
import sqlite3
import sys
from contextlib import closing

import pytest

from onepeace.cli import main
from onepeace.commands.search import table
from onepeace.embed import embedder
from onepeace.index import Hit, Index, Item, Query, Results, cache, check
from onepeace.index.database import DATABASE

QUERY = Query(text="a")


@pytest.fixture
def search(run, index):
    """Runs `onepeace search INDEX ...`, which must end with that code: (hits, stderr)."""

    def call(*options, code=0):
        out, err = run("search", index, *options, "--json", "--device", "cpu", code=code)
        return json.loads(out)["hits"] if out else [], err

    return call


# ------------------------------------------------------------------ queries


def test_conditions_and_their_short_forms_are_met_together(search):
    conditions = ("--path", "images/*", "--where", "width >= 200", "--after", "1990")
    hits, _ = search("--text", "a", *conditions, "--top", "99")
    assert hits
    for hit in hits:
        assert "/images/" in hit["path"]
        assert hit["width"] >= 200
        assert hit["date"]


@pytest.mark.parametrize("option", ["--image", "--like"])
def test_file_of_the_query_is_no_hit(search, dog, option):
    hits, _ = search(option, dog, "--top", "99")
    assert str(dog) not in [hit["path"] for hit in hits]


@pytest.mark.parametrize("words", [["a. b. dog?"], ["a", "dog"]])
def test_words_after_the_path_are_the_text(search, words):
    hits, err = search(*words)
    expected, _ = search("--text", " ".join(words))
    assert hits == expected
    assert ("searching" in err) == (words == ["a", "dog"])


@pytest.mark.parametrize("word", ["no/folder", "photo.jpg", "THERE"])
def test_words_that_could_be_a_path_are_refused(search, monkeypatch, tmp_path, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "THERE").touch()
    hits, err = search(word, code=2)
    assert hits == []
    assert f"--text '{word}'" in err


# ------------------------------------------------------------------ the table


def hit_with(match):
    return Hit(1, Item("/a.ogg", "audio"), "audio", 0.25, match, start=75.0)


def test_table_of_matches_says_that_nothing_is_relevant():
    results = Results((hit_with(match=0.5),), compared=1, relevant=False)
    first, header, row = table(results, QUERY, is_filtered=False).splitlines()
    assert first.startswith("nothing relevant")
    assert header.split()[1] == "match"
    assert row.split()[1:3] == ["weak", "audio"]


@pytest.mark.parametrize(
    ("match", "value"),
    [
        (0.699, "weak"),
        (0.9499, "possible 0.94"),
        (0.999, "likely 0.99"),
    ],
)
def test_match_is_rounded_down(match, value):
    assert hit_with(match).value == value


def test_table_says_which_words_are_rare():
    found = {"words": ("dog",), "item": Item("/a.ogg", "audio"), "modality": "audio", "score": 0.25, "match": 0.5}
    hits = (Hit(1, named=True, rare=True, **found), Hit(2, named=True, **found), Hit(3, **found))
    results = Results(hits, compared=3)

    rows = [line.split()[1:-1] for line in table(results, QUERY, is_filtered=False).splitlines()]

    assert rows[1:] == [
        ["named", "audio", "dog", "(rare)"],
        ["named", "audio", "dog"],
        ["weak", "audio", "dog"],
    ]


def test_all_shows_copies_one_by_one(run_model, dog, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        shutil.copyfile(dog, tmp_path / name)
    num_copies = {}
    for option in ("--top=9", "--all"):
        out, _ = run_model("search", tmp_path, "--text", "a dog", "--no-index", "--json", option)
        num_copies[option] = [len(hit["copies"]) for hit in json.loads(out)["hits"]]
    assert num_copies == {"--top=9": [1], "--all": [0, 0]}


def test_table_escapes_names_that_a_terminal_cannot_show(random_folder, dog, cat, tmp_path, monkeypatch):
    shutil.copyfile(dog, tmp_path / "写真.jpg")
    shutil.copyfile(cat, os.fsencode(tmp_path) + b"/\xff.jpg")  # no UTF-8
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii", "strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["search", str(tmp_path), "--text", "犬", "--no-index", "--model", str(random_folder)]) == 0
    text = terminal.buffer.getvalue().decode()
    assert r"\u5199\u771f.jpg" in text
    assert r"\udcff.jpg" in text


# ------------------------------------------------------------------ folders without an index


@pytest.fixture
def folder(tmp_path, dog, monkeypatch):
    """A picture and a broken one; there is no index in the cache."""
    monkeypatch.setattr(cache, "indexes_folder", lambda: tmp_path / "cache")
    path = tmp_path / "own"
    path.mkdir()
    shutil.copy(dog, path)
    (path / "broken.jpg").write_bytes(b"no picture")
    return path


def test_index_in_the_cache_is_announced_once_and_updated(run_model, folder, cat, monkeypatch):
    loads = []
    load = embedder.load

    def counted_load(*arguments, **options):
        loads.append(arguments)
        return load(*arguments, **options)

    monkeypatch.setattr(embedder, "load", counted_load)
    out, err = run_model("search", folder, "--text", "a dog", "--json", code=1)
    assert len(json.loads(out)["hits"]) == 1
    assert "--no-index" in err
    assert "broken.jpg" in err
    assert len(loads) == 1  # for the files and for the query

    for num_hits in (1, 2):
        out, err = run_model("search", folder, "--text", "a dog", "--json")
        assert len(json.loads(out)["hits"]) == num_hits
        assert "--no-index" not in err
        assert "broken.jpg" not in err
        shutil.copy(cat, folder)


@pytest.mark.parametrize("is_noticed", ["by the update", "by the search"])
def test_damaged_index_in_the_cache_is_made_anew(run_model, folder, tmp_path, is_noticed):
    expected, _ = run_model("search", folder, "--text", "a dog", "--json", code=1)
    (index,) = (tmp_path / "cache").iterdir()
    if is_noticed == "by the update":
        (index / DATABASE).write_bytes(b"damaged")
    else:  # the file of a vector is missing
        with closing(sqlite3.connect(index / DATABASE)) as connection, connection:
            connection.execute("DELETE FROM files")

    out, err = run_model("search", folder, "--text", "a dog", "--json", code=1)

    assert out == expected
    assert "--force" not in err
    assert check(index).ok


def test_index_that_is_deleted_before_it_is_opened_is_made_anew(run_model, folder, tmp_path, monkeypatch):
    expected, _ = run_model("search", folder, "--text", "a dog", "--json", code=1)
    plain_open = Index.open

    def open_later(path, **options):
        monkeypatch.undo()
        monkeypatch.setattr(cache, "indexes_folder", lambda: tmp_path / "cache")
        shutil.rmtree(path)
        return plain_open(path, **options)

    monkeypatch.setattr(Index, "open", open_later)
    assert run_model("search", folder, "--text", "a dog", "--json", code=1).out == expected


def test_index_takes_what_a_search_has_computed(run_model, folder, tmp_path):
    run_model("search", folder, "--text", "a dog", code=1)
    folder = folder.rename(tmp_path / "renamed")

    for dtype, expected in (("auto", "1 copied; 0 vectors computed"), ("float32", "1 added; 1 vector computed")):
        err = run_model("index", "build", tmp_path / dtype, folder, "--dtype", dtype, code=1).err
        assert expected in err


def test_index_in_the_cache_is_listed_and_removed(run, run_model, folder):
    run_model("search", folder, "--text", "a dog", code=1)
    header, row = run("index", "list").out.splitlines()
    path, num_files, *_ = row.split()
    assert header.split()[0] == "index"
    assert num_files == "1"
    assert str(folder) in row
    run("index", "remove", path)
    assert not os.path.exists(path)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--text"),
        (["a word", "--like", "a.jpg"], "a word: no such file or folder"),
        (["--image", "FOLDER"], "folder"),
        (["--text", "a", "--weights", "image=1"], "--weights"),
        (["--text", "a", "--where", "wdith > 3"], "--where: 'wdith > 3': 'wdith'"),
        (["--text", "a", "--html", "FOLDER"], ".html"),
        (["--text", "a", "FOLDER"], "one index"),
    ],
)
def test_usage_error_names_the_option(run, index, samples, arguments, word):
    arguments = [argument.replace("FOLDER", str(samples)) for argument in arguments]
    out, err = run("search", index, *arguments, code=2)
    assert out == ""
    assert err.count("\n") == 1
    assert word in err
    assert "vector" not in err  # a field of a query in Python, but not an option


@pytest.mark.parametrize("name", ["photo.jpg", "link.html"])
def test_html_replaces_no_file_that_is_not_its_own(run, index, tmp_path, name):
    photo = tmp_path / name.replace("link.html", "photo.jpg")
    photo.write_bytes(b"a photo")
    if name == "link.html":
        (tmp_path / name).symlink_to(photo)

    (line,) = run("search", index, "--text", "a", "--html", tmp_path / name, code=2).err.splitlines()

    assert name in line
    assert photo.read_bytes() == b"a photo"


def test_html_replaces_its_own_page(run, index, tmp_path):
    page = tmp_path / "hits.html"
    for words in ("first", "second"):
        run("search", index, "--html", page, "--text", words)

    assert "<h1>second</h1>" in page.read_text()
