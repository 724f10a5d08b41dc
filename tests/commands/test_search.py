"""`onepeace search` on real files with broken ones among them: hits as a table and as JSON, and what is refused."""

import io
import json
import os
import shutil
import sys

import pytest
from support.broken_files import write_broken, write_good

from onepeace.cli import main
from onepeace.commands.search import table
from onepeace.embed import embedder
from onepeace.index import Hit, Item, Query, Results
from onepeace.index.fields import FIELDS

QUERY = Query(text="a")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, samples):
    """A folder of 20 real files under awkward names and 21 broken ones."""
    folder = tmp_path_factory.mktemp("mixed")
    return folder, write_good(folder / "real", samples, 20), write_broken(folder / "broken", samples)


@pytest.fixture(scope="module")
def index(tmp_path_factory, samples, random_folder):
    """An index of the samples."""
    folder = tmp_path_factory.mktemp("index") / "i"
    assert main(["index", "build", str(folder), str(samples), "--model", str(random_folder), "--device", "cpu"]) == 0
    return folder


@pytest.fixture
def search(index, capsys):
    """Runs `onepeace search INDEX ...`: (exit code, hits, stderr)."""

    def run(*options):
        code = main(["search", str(index), *map(str, options), "--json", "--device", "cpu"])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines()], err

    return run


def test_hits_are_ranked_by_the_cosine_where_it_is_asked_for(search, model):
    code, hits, err = search("--text", "words in no name", "--rank", "raw", "--top", "5", "--only", "pictures")
    assert (code, err, [hit["rank"] for hit in hits]) == (0, "", [1, 2, 3, 4, 5])
    (first, *_), scores = hits, [hit["score"] for hit in hits]
    expected = model.similarity(model.encode_image([first["path"]]), model.encode_text(["words in no name"])).item()
    assert (first["score"], first["match"]) == (pytest.approx(expected, abs=2e-5), None)
    assert scores == sorted(scores, reverse=True)


def test_a_mix_is_weighted_by_names(search, samples):
    parts = ["--image", samples / "images" / "dog.jpg", "--audio", samples / "sounds" / "dog.ogg", "--top", "99"]
    parts += ["--rank", "raw"]
    sound = search(*parts, "--weights", "image=0,audio=2")[1]
    alone = search("--audio", samples / "sounds" / "dog.ogg", "--top", "99", "--rank", "raw")[1]
    by_path = {hit["path"]: hit["score"] for hit in alone}
    shared = [hit for hit in sound if hit["path"] in by_path]
    assert len(shared) > 10
    assert all(hit["score"] == pytest.approx(by_path[hit["path"]], abs=1e-4) for hit in shared)


def test_only_takes_the_words_of_people(search):
    for words, kinds in (("Sounds", {"audio"}), ("pictures,sounds", {"audio", "image"})):
        assert {hit["kind"] for hit in search("--text", "a", "--only", words, "--top", "99")[1]} == kinds
    code, _, err = search("--text", "a", "--only", "picturs")
    assert (code, "did you mean pictures?" in err) == (2, True)


def test_conditions_and_their_short_forms_are_met_together(search):
    hits = search("--text", "a", "--path", "images/*", "--where", "width >= 200", "--after", "1990", "--top", "99")[1]
    assert hits
    assert all("/images/" in hit["path"] and hit["width"] >= 200 and hit["date"] for hit in hits)


def test_the_querys_own_file_is_no_hit_and_a_broken_one_an_error(search, samples, tmp_path):
    dog = samples / "images" / "dog.jpg"
    for option in ("--image", "--like"):
        assert str(dog) not in [hit["path"] for hit in search(option, dog, "--top", "99")[1]]
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    code, hits, err = search("--image", tmp_path / "broken.jpg")
    assert (code, hits, "broken.jpg" in err) == (1, [], True)


def test_table_is_for_people(mixed, random_folder, monkeypatch, capsys):
    folder, good, _ = mixed
    monkeypatch.chdir(folder)
    arguments = ["search", "real", "--text", "a dog", "--top", "40", "--no-index", "--model", str(random_folder)]
    arguments += ["--rank", "raw"]  # without a match, there is no heading
    assert main(arguments) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert (head.split()[0], head.split()[-1]) == ("rank", "path")
    assert 10 < len(lines) <= len(good)  # a line break in a name does not break the table; copies are one hit
    assert all(" real/" in line for line in lines)  # as one types it
    assert any(r"line\nbreak" in line for line in lines)


def test_a_match_and_a_cosine_are_never_in_one_column_and_headings_stand_above():
    def value(match):
        return Hit(1, Item("/a.ogg", "audio"), "audio", 0.25, match).value

    def results(match, relevant):
        return Results((Hit(1, Item("/a.ogg", "audio"), "audio", 0.25, match, start=75.0),), 1, relevant)

    assert [line.split() for line in table(results(None, None), QUERY, False).splitlines()] == [
        ["rank", "cosine", "kind", "at", "path"],
        ["1", "0.250", "audio", "1:15", "/a.ogg"],
    ]
    first, head, hit = table(results(0.5, False), QUERY, False).splitlines()
    assert first.startswith("nothing relevant")
    assert (head.split()[1], hit.split()[1:3]) == ("match", ["unlikely", "0.50"])
    assert [value(match) for match in (0.699, 0.7, 0.95, 0.951, 0.999, 1.0)] == [
        "unlikely 0.69",
        "possible 0.70",
        "possible 0.95",
        "likely 0.95",
        "likely 0.99",
        "likely 1.00",
    ]


def test_broken_files_are_listed_and_the_others_found(mixed, random_folder, capsys):
    folder, good, broken = mixed
    arguments = ["search", str(folder), "--text", "a dog", "--json", "--no-index", "--model", str(random_folder)]
    assert main([*arguments, "--top", "99"]) == 1
    out, err = capsys.readouterr()
    assert {json.loads(line)["path"] for line in out.splitlines()} <= {str(path) for path in good}
    for name, reason in list(broken.items()):
        shown = str(folder / "broken" / name).replace("\n", "\\n")
        (line,) = [line for line in err.splitlines() if f"  {shown}: " in line]
        assert reason in line


def test_plain_folders_have_an_index_that_is_kept_said_once_and_removed(
    random_folder, samples, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(samples / "images" / "dog.jpg", folder)
    (folder / "broken.jpg").write_bytes(b"no picture")
    loads, load = [], embedder.load
    monkeypatch.setattr(embedder, "load", lambda *args, **options: loads.append(args) or load(*args, **options))

    def search():
        code = main(["search", str(folder), "--text", "a dog", "--json", "--model", str(random_folder)])
        out, err = capsys.readouterr()
        return code, len(out.splitlines()), "--no-index" in err, "broken.jpg" in err

    assert search() == (1, 1, True, True)
    assert len(loads) == 1  # for the files and for the query
    assert search() == (0, 1, False, False)  # known by now
    shutil.copy(samples / "images" / "sea.jpg", folder)
    assert search() == (0, 2, False, False)
    assert main(["index", "list"]) == 0
    (head, row) = capsys.readouterr().out.splitlines()
    kept = row.split()[0]
    assert (head.split()[0], row.split()[1], str(folder) in row) == ("index", "2", True)
    assert main(["index", "remove", kept]) == 0
    assert not os.path.exists(kept)
    assert main(["index", "build", str(tmp_path / "i"), str(folder), "--model", str(random_folder)]) == 1
    assert main(["index", "remove", str(tmp_path / "i")]) == 2  # one's own is not removed as a whole
    assert (tmp_path / "i").is_dir()


@pytest.mark.parametrize("words", [["a dog"], ["a", "dog"], ["a dog", "--top", "9"], ["a. b. dog?"]])
def test_words_after_the_path_are_the_text(search, words):
    text = "a. b. dog?" if "?" in words[0] else "a dog"
    code, hits, err = search(*words)
    assert (code, hits[:9]) == (0, search("--text", text)[1][:9])
    assert ("searching" in err) == (words == ["a", "dog"])


@pytest.mark.parametrize("word", ["no/folder", "photo.jpg", "my.index", "THERE"])
def test_words_that_could_be_a_path_are_refused(search, monkeypatch, tmp_path, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "THERE").touch()
    code, hits, err = search(word)
    assert (code, hits) == (2, [])
    assert f"--text '{word}'" in err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--text"),
        (["a word", "--like", "a.jpg"], "a word: no such file or folder"),
        (["--without", "a"], "--text"),
        (["--image", "nothing.jpg"], "nothing.jpg"),
        (["--image", "FOLDER"], "folder"),
        (["--text", "a", "--top", "0"], "--top"),
        (["--text", "a", "--only", "smell"], "smell"),
        (["--text", "a", "--only", ","], "''"),
        (["--text", "a", "--weights", "image=1"], "--weights"),
        (["--text", "a", "--weights", "smell=1"], "smell"),
        (["--text", " "], "text"),
        (["--text", "a", "--offset", "-1"], "--offset"),
        (["--text", "a", "--min-match", "nan"], "--min-match"),
        (["--text", "a", "--where", "wdith > 3"], "--where: 'wdith'"),
        (["--text", "a", "--after", "May"], "--after"),
        (["--text", "a", "--html", "FOLDER/no/page.html"], "page.html"),
        (["--text", "a", "--html", "FOLDER"], "folder"),
        (["--text", "a", "FOLDER"], "one index"),
    ],
)
def test_wrong_usage_is_one_line_that_names_the_option(index, samples, capsys, arguments, named):
    code = main(["search", str(index), *(argument.replace("FOLDER", str(samples)) for argument in arguments)])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert named in err
    assert "vector" not in err  # a field of a query in Python, but not an option


@pytest.mark.parametrize("name", ["photo.jpg", "link.html"])
def test_html_overwrites_a_file_only_with_force(index, tmp_path, capsys, name):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"a photo")
    (tmp_path / "link.html").symlink_to(photo)
    command = ["search", str(index), "--text", "a", "--html", str(tmp_path / name)]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--force" in line
    assert photo.read_bytes() == b"a photo"
    assert main([*command, "--force"]) == 0
    assert photo.read_bytes().startswith(b"<!doctype html>")


def test_other_model_is_refused_also_where_no_model_is_needed(index, samples, capsys):
    known = str(samples / "images" / "dog.jpg")
    assert main(["search", str(index), "--like", known, "--model", "tiny"]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "--model" in err


def test_nothing_found_does_not_speak_of_filters_alone(random_folder, samples, capsys):
    picture = str(samples / "images" / "dog.jpg")
    assert main(["search", picture, "--image", picture, "--no-index", "--model", str(random_folder)]) == 0
    assert capsys.readouterr().out.startswith("nothing found: ")


def test_nothing_found_names_the_query_s_own_file_only_where_there_is_one():
    nothing = Results((), 0)
    assert "the query's own" not in table(nothing, QUERY, is_filtered=True)
    assert "filters" not in table(nothing, Query(image="a.jpg"), is_filtered=False)
    assert "the query's own" in table(nothing, Query(image="a.jpg"), is_filtered=True)


def test_help_names_every_field_of_a_condition_and_says_what_the_match_is(capsys):
    assert main(["search", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    listed = text.partition("expression over ")[2].partition(", with the units")[0]
    assert {*listed.replace(" and ", ", ").split(", ")} == {*FIELDS, "metadata.NAME"}
    assert "unrelated queries" in text


def test_names_that_a_terminal_cannot_show_are_escaped(random_folder, samples, tmp_path, monkeypatch):
    shutil.copyfile(samples / "images" / "dog.jpg", tmp_path / "写真.jpg")
    shutil.copyfile(samples / "images" / "cat.jpg", os.fsencode(tmp_path) + b"/\xff.jpg")  # no UTF-8
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii", "strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["search", str(tmp_path), "--text", "犬", "--no-index", "--model", str(random_folder)]) == 0
    shown = terminal.buffer.getvalue().decode()
    assert r"\u5199\u771f.jpg" in shown
    assert r"\udcff.jpg" in shown
