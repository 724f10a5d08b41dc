"""`onepeace index` as a user sees it: what each verb prints, in one line for each outcome, and the exit codes."""

import json
import os
import re
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import soundfile
from support.random_model import save_random_model

from onepeace.cli import main
from onepeace.index.cache import indexes_folder

SECONDS = re.compile(r"\d+\.\d")


@pytest.fixture
def run(random_folder, capsys):
    """Runs `onepeace index VERB ...`: (exit code, stdout, lines of stderr with T for times)."""

    def index(verb, *arguments):
        more = ["--model", str(random_folder), "--device", "cpu"] if verb in ("build", "update") else []
        code = main(["index", verb, *map(str, arguments), *more])
        out, err = capsys.readouterr()
        return code, out, SECONDS.sub("T", err).splitlines()

    return index


@pytest.fixture
def folder(tmp_path, samples):
    """Two pictures, a sound, a text, two files that are none, and three of other kinds."""
    path = tmp_path / "my files"
    path.mkdir()
    for name in ("images/dog.jpg", "images/cat.jpg", "sounds/dog.ogg"):
        shutil.copy(samples / name, path)
    (path / "words.txt").write_text("a dog")
    (path / "line\nbreak.jpg").write_bytes(b"no picture")
    (path / "empty.ogg").touch()
    for name in ("a.pdf", "b.pdf", "c.docx"):
        (path / name).touch()
    return path


def test_build_update_stats_check_remove(run, folder, tmp_path):
    index = tmp_path / "my index"
    code, out, err = run("build", index, folder)
    others = "onepeace: 3 files of other types skipped: .pdf 2, .docx 1"
    failed = [r"line\nbreak.jpg: not a picture", "empty.ogg: the file is empty"]
    assert (code, out, len(err)) == (1, "", 5)
    assert err[:3] == [
        others,
        "onepeace: 4 added; 6 vectors in T s, T files a second",
        "onepeace: 2 of 6 files failed:",
    ]
    assert all(any(f"  {folder}/{name}" in line for line in err[3:]) for name in failed)
    for verb in (["build", index, folder], ["update", index]):
        code, out, err = run(*verb)
        assert (code, out, err[:2]) == (0, "", [others, "onepeace: nothing to do: 6 files unchanged"])
        assert err[2].endswith(f": onepeace index stats '{index}' --problems")
    (folder / "cat.jpg").rename(folder / "kitten.jpg")
    (folder / "dog.ogg").unlink()
    assert "onepeace: 1 moved, 1 removed, 4 unchanged; 0 vectors in T s" in run("update", index)[2]

    code, out, err = run("stats", index)
    about = dict(re.split(r" {2,}", line, maxsplit=1) for line in out.splitlines())
    assert (code, err, about["files"], about["vectors"]) == (0, [], "2 image, 1 text", "3")
    assert "--problems" in about["problems"]
    out = run("stats", index, "--problems")[1]
    assert all(f"{folder}/{name}" in out for name in failed)
    stats = json.loads(run("stats", index, "--problems", "--json")[1])
    assert (stats["files"], len(stats["unreadable"])) == ({"image": 2, "text": 1}, 2)
    assert run("check", index)[0] == 0
    assert run("remove", index, folder / "dog.jpg") == (0, "", ["onepeace: 1 file removed from the index"])
    assert run("remove", index, folder) == (0, "", ["onepeace: 4 files removed from the index"])


def test_check_finds_damage_and_repairs_it(run, folder, tmp_path):
    index = tmp_path / "i"
    run("build", index, folder)
    database = index / "index.sqlite"
    content = bytearray(database.read_bytes())
    place = content.index(b"words.txt")
    content[place] ^= 1
    database.write_bytes(content)
    assert run("check", index)[0] == 1
    assert run("check", index, "--repair")[0] == 0
    assert run("check", index)[0] == 0


def test_after_the_paths_are_lost_no_file_is_forgotten(run, folder, tmp_path):
    index = tmp_path / "i"
    run("build", index, folder)
    with closing(sqlite3.connect(index / "index.sqlite")) as database, database:
        database.execute("UPDATE blobs SET crc = 0 WHERE name = 'roots'")
    code, out, _ = run("check", index, "--repair")
    assert (code, " build " in out) == (0, True)
    code, _, err = run("update", index)
    assert (code, len(err), " build " in err[0]) == (1, 1, True)
    before = json.loads(run("stats", index, "--json")[1])["files"]
    assert run("build", index, folder)[0] == 0
    assert run("update", index)[0] == 0
    assert json.loads(run("stats", index, "--json")[1])["files"] == before


def test_export_asks_before_it_replaces(run, folder, tmp_path):
    run("build", tmp_path / "i", folder)
    target = tmp_path / "v.npz"
    target.write_bytes(b"older")
    code, _, err = run("export", tmp_path / "i", "-o", target)
    assert (code, "--force" in err[0], target.read_bytes()) == (2, True, b"older")
    assert run("export", tmp_path / "i", "-o", target, "--force")[0] == 0
    with np.load(target) as data:
        assert data["vectors"].shape == (6, 16)
    code, _, err = run("export", tmp_path / "i", "-o", tmp_path / "no" / "v.npz")
    assert (code, "v.npz" in err[0]) == (2, True)
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    code, _, err = run("export", tmp_path / "i", "-o", pipe, "--force")
    assert (code, "pipe.npz" in err[0], pipe.is_fifo()) == (2, True, True)


def test_silence_is_listed_though_it_is_in_the_index(run, tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    code, _, err = run("build", tmp_path / "i", tmp_path / "silent.wav")
    assert (code, "1 file " in err[-1], "--problems" in err[-1]) == (0, True, True)
    line = run("stats", tmp_path / "i", "--problems")[1].splitlines()[-1]
    assert line.startswith(f"{tmp_path}/silent.wav: ")


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["build", "I"], 2, "PATHS"),
        (["build", "I", "FOLDER/nothing"], 2, "nothing: "),
        (["build", "FOLDER", "FOLDER"], 1, "my files: "),
        (["update", "I"], 1, "I: "),
        (["stats", "I"], 1, "I: "),
        (["cluster", "I", "--count", "0"], 2, "--count"),
    ],
)
def test_what_goes_wrong_is_one_line(run, folder, tmp_path, arguments, code, named):
    places = {"FOLDER": str(folder), "I": str(tmp_path / "I")}
    arguments = [arguments[0], *(re.sub("FOLDER|^I$", lambda place: places[place[0]], a) for a in arguments[1:])]
    done, out, err = run(*arguments)
    assert (done, out, len(err)) == (code, "", 1)
    assert named in err[0]
    assert not (tmp_path / "I").exists()


def test_missing_files_that_are_kept_and_what_a_move_loses_are_told(run, tmp_path, capsys):
    folder = tmp_path / "disk"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"words number {i}")
    run("build", tmp_path / "i", folder)
    for i in range(11):
        (folder / f"{i}.txt").unlink()
    code, _, err = run("update", tmp_path / "i")
    assert code == 0
    assert f"11 files below {folder} are missing" in err[-1]
    other = save_random_model(tmp_path / "other", depth=1)
    assert main(["index", "build", str(tmp_path / "i"), "--model", str(other), "--device", "cpu"]) == 0
    assert "11 files gone from disk" in capsys.readouterr().err


def test_cached_index_is_not_moved(run, tmp_path):
    code, _, err = run("build", indexes_folder() / "tiny.index")
    assert (code, len(err)) == (2, 1)
    assert "a cached index stays with its model" in err[0]
