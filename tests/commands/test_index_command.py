"""`onepeace index` as a user sees it: what each verb prints, in one line for each outcome, and the exit codes."""

import json
import re
import shutil

import pytest


@pytest.fixture
def run_index(run, run_model):
    """Runs `onepeace index VERB ...`, which must end with that code: (stdout, lines of stderr with T for times)."""

    def call(verb, *arguments, code=0):
        run_verb = run_model if verb in ("build", "update") else run
        out, err = run_verb("index", verb, *arguments, code=code)
        return out, re.sub(r"\d+\.\d", "T", err).splitlines()

    return call


@pytest.fixture
def index(tmp_path):
    """Where the index is to be."""
    return tmp_path / "my index"


@pytest.fixture
def folder(tmp_path, samples):
    """Two pictures, a sound, a text, two files that are none, and three of other kinds."""
    path = tmp_path / "my files"
    path.mkdir()
    for name in ("images/dog.jpg", "images/cat.jpg", "sounds/dog.ogg"):
        shutil.copy(samples / name, path)
    (path / "words.txt").write_text("a dog")
    (path / "line\nbreak.jpg").write_bytes(b"no picture")
    for name in ("empty.ogg", "a.pdf", "b.pdf", "c.docx"):
        (path / name).touch()
    return path


OTHERS = "onepeace: 3 files of other types skipped: .pdf 2, .docx 1"


@pytest.fixture
def built(run_index, index, folder):
    run_index("build", index, folder, code=1)
    return index


def assert_names_unreadable(text, folder):
    assert rf"  {folder}/line\nbreak.jpg: not a picture" in text
    assert f"  {folder}/empty.ogg: the file is empty" in text


def test_build_says_what_was_added_and_what_failed(run_index, index, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("onepeace.index.cache.indexes_folder", lambda: tmp_path)  # no files of other tests
    out, err = run_index("build", index, folder, code=1)
    assert out == ""
    assert err[:3] == [
        OTHERS,
        "onepeace: 4 added; 6 vectors computed in T s, T files a second",
        "onepeace: 2 of 6 files failed:",
    ]
    assert len(err) == 5
    assert_names_unreadable("\n".join(err), folder)


def test_second_run_has_nothing_to_do(run_index, built):
    out, err = run_index("update", built)
    assert out == ""
    assert err[:2] == [OTHERS, "onepeace: nothing to do: 6 files unchanged"]
    assert err[2].endswith(f": onepeace index stats '{built}' --problems")


def test_update_says_what_moved_and_what_is_gone(run_index, built, folder):
    (folder / "cat.jpg").rename(folder / "kitten.jpg")
    (folder / "dog.ogg").unlink()
    _, err = run_index("update", built)
    assert "onepeace: 1 moved, 1 removed, 4 unchanged; 0 vectors computed in T s" in err


def test_stats_count_files_and_list_problems(run_index, built, folder):
    out, _ = run_index("stats", built)
    assert re.search("^files +1 audio, 2 image, 1 text$", out, re.MULTILINE)
    out, _ = run_index("stats", built, "--problems")
    assert_names_unreadable("\n".join(f"  {line.strip()}" for line in out.splitlines()), folder)
    out, _ = run_index("stats", built, "--problems", "--json")
    stats = json.loads(out)
    assert stats["files"] == {"image": 2, "audio": 1, "text": 1}
    assert len(stats["unreadable"]) == 2


def test_remove_a_file_and_a_folder(run_index, built, folder):
    assert run_index("remove", built, folder / "dog.jpg") == ("", ["onepeace: 1 file removed from the index"])
    assert run_index("remove", built, folder) == ("", ["onepeace: 5 files removed from the index"])


def test_export_replaces_a_file_only_with_force(run_index, built, tmp_path):
    target = tmp_path / "v.npz"
    target.write_bytes(b"older")
    _, err = run_index("export", built, "-o", target, code=2)
    assert "--force" in err[0]
    assert target.read_bytes() == b"older"
    run_index("export", built, "-o", target, "--force")
    assert target.read_bytes() != b"older"


def test_duplicates_say_which_file_is_the_same_as_the_first(run_index, built, folder):
    shutil.copy(folder / "cat.jpg", folder / "copy of cat.jpg")
    run_index("update", built)
    out, _ = run_index("duplicates", built)
    *_, copy = out.splitlines()
    assert copy.split()[1] == "same"


def test_update_keeps_many_missing_files_and_tells(run_index, index, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"words number {i}")
    run_index("build", index, folder)
    for i in range(11):
        (folder / f"{i}.txt").unlink()
    _, err = run_index("update", index)
    assert f"11 files below {folder} are missing" in err[-1]
