"""`onepeace index duplicates` and `cluster` as a user sees them: tables, JSON, and what goes wrong in one line."""

import json

import pytest
from support.indexes import fabricate

from onepeace.cli import main
from onepeace.index.identity import IMPORTED
from onepeace.index.store import Item
from onepeace.index.write import build, remove


@pytest.fixture
def run(capsys):
    """Runs `onepeace index VERB --index FOLDER ...`: (exit code, lines of stdout, lines of stderr)."""

    def index(verb, folder, *arguments):
        code = main(["index", verb, "--index", str(folder), *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return index


@pytest.fixture
def imported(tmp_path):
    """Vectors of another model, of two pairs of near copies and a picture that is like nothing."""
    files = [
        (Item("/p/large.jpg", "image", 9_000, hash=b"1" * 16, width=640, height=480), [100, 1, 0]),
        (Item("/p/small\n.png", "image", 2_500_000, hash=b"2" * 16, width=64, height=48), [100, 0, 0]),
        (Item("/p/other.jpg", "image", 9_000, hash=b"3" * 16), [0, 100, 0]),
        (Item("/p/a.wav", "audio", 4_000, hash=b"4" * 16, duration=5.0), [0, 0, 1]),
        (Item("/p/b.wav", "audio", 4_000, hash=b"4" * 16, duration=5.0), [0, 0, 1]),
    ]
    return fabricate(tmp_path / "i", files, model="siglip2", model_hash=IMPORTED)


def test_copies_are_listed_with_the_best_one_first(run, imported):
    code, out, err = run("duplicates", imported)
    assert (code, err) == (0, ["onepeace: 2 groups; 2 files (2.5 MB) are copies of others, or nearly"])
    assert [line.split() for line in out[1:]] == [
        ["1", "9", "kB", "640", "x", "480", "/p/large.jpg"],
        ["1", "1.000", "2.5", "MB", "64", "x", "48", r"/p/small\n.png"],
        ["2", "4", "kB", "5.0", "s", "/p/a.wav"],
        ["2", "same", "4", "kB", "5.0", "s", "/p/b.wav"],
    ]
    code, out, err = run("duplicates", imported, "--exact", "--json")
    assert (code, err) == (0, ["onepeace: 1 group; 1 file (4 kB) are copies of others"])
    (group,) = map(json.loads, out)
    assert (group["group"], group["kind"]) == (1, "audio")
    assert [(file["path"], file["similarity"], file["exact"], file["duration"]) for file in group["files"]] == [
        ("/p/a.wav", 1.0, True, 5.0),
        ("/p/b.wav", 1.0, True, 5.0),
    ]
    code, out, err = run("duplicates", imported, "--threshold", "1")
    assert (len(out), err[0].partition(";")[0]) == (3, "onepeace: 1 group")


def test_groups_of_imported_vectors_are_numbered_and_a_line_says_why(run, imported):
    pytest.importorskip("sklearn")
    code, out, err = run("cluster", imported, "--clusters", 3)
    why = "onepeace: clusters have numbers only: no model here makes vectors of words for those of siglip2"
    assert (code, err) == (0, [why])
    assert out[0].split()[:2] == ["cluster", "name,"]
    assert sorted(line.split()[1:] for line in out[1:]) == [
        ["-", "1", "image", "other.jpg"],
        ["-", "2", "audio", "a.wav,", "b.wav"],
        ["-", "2", "image", "large.jpg,", r"small\n.png"],
    ]
    code, out, _ = run("cluster", imported, "--clusters", 1, "--json")
    lines = [json.loads(line) for line in out]
    assert {(line["cluster"], line["name"]) for line in lines} == {(1, None)}
    assert [line["similarity"] for line in lines] == sorted((line["similarity"] for line in lines), reverse=True)


def test_groups_are_named_by_own_words(run, random_folder, samples, tmp_path):
    pytest.importorskip("sklearn")
    pictures = [samples / "images" / f"{name}.jpg" for name in ("cat", "dog", "sea")]
    build(tmp_path / "i", pictures, str(random_folder), device="cpu", progress=False)
    (tmp_path / "names").write_text("furry animal\n\nwater\n", encoding="utf-8-sig")
    code, out, err = run("cluster", tmp_path / "i", "--clusters", 2, "--names", tmp_path / "names", "--json")
    assert (code, err) == (0, [])
    assert {json.loads(line)["name"] for line in out} == {"furry animal", "water"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["duplicates", "--threshold", "0"], 2, "'0' is not a number above 0 and up to 1"),
        (["duplicates", "--threshold", "nan"], 2, "'nan' is not a number above 0 and up to 1"),
        (["duplicates", "--exact", "--thorough"], 2, "--exact compares contents only"),
        (["cluster", "--clusters", "0"], 2, "'0' is not a whole number from 1 up"),
        (["cluster", "--names", "no-such-file"], 2, "no-such-file: cannot be read (No such file or directory)"),
        (["cluster", "--names", "/dev/null"], 2, "/dev/null: no names in it"),
    ],
)
def test_wrong_usage_is_one_line(run, imported, arguments, code, message):
    done, out, err = run(arguments[0], imported, *arguments[1:])
    assert (done, out, len(err)) == (code, [], 1)
    assert message in err[0]


def test_index_without_files_or_with_one_is_said(run, random_folder, samples, tmp_path):
    pytest.importorskip("sklearn")
    folder = tmp_path / "i"
    build(folder, [samples / "images" / "cat.jpg"], str(random_folder), device="cpu", progress=False)
    assert run("duplicates", folder) == (0, [], ["onepeace: 0 groups; 0 files (0 kB) are copies of others, or nearly"])
    assert run("cluster", folder) == (1, [], [f"onepeace: {folder}: 1 file in it; clusters need at least 2"])
    remove(folder, [samples / "images" / "cat.jpg"])
    said = f"onepeace: {folder}: no files in it; add some with: onepeace index add"
    assert run("duplicates", folder) == run("cluster", folder) == (1, [], [said])
