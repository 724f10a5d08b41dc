"""`onepeace index` as a user sees it: what each verb prints, in one line for each outcome, and the exit codes."""

import re
import shutil

import pytest

from onepeace.cli import main

SECONDS = re.compile(r"\d+\.\d")


@pytest.fixture
def run(command, capsys):
    """Runs `onepeace index VERB ...`: (exit code, stdout, lines of stderr, times as T)."""

    def index(verb, *arguments):
        if verb in ("build", "add", "update"):
            code, out, err = command("index", verb, *arguments)
        else:
            code = main(["index", verb, *map(str, arguments)])
            out, err = capsys.readouterr()
        return code, out, SECONDS.sub("T", err).splitlines()

    return index


@pytest.fixture
def folder(tmp_path, samples):
    """Two pictures, a sound, a text and two files that are none."""
    path = tmp_path / "my files"
    path.mkdir()
    for name in ("images/dog.jpg", "images/cat.jpg", "sounds/dog.ogg"):
        shutil.copy(samples / name, path)
    (path / "words.txt").write_text("a dog")
    (path / "line\nbreak.jpg").write_bytes(b"no picture")
    (path / "empty.ogg").touch()
    return path


def test_build_update_stats_verify_remove(run, folder, tmp_path):
    index = tmp_path / "my index"
    code, out, err = run("build", folder, "--index", index)
    assert (code, out) == (1, "")
    assert err == [
        "onepeace: 4 added; 6 vectors in T s, T files a second",
        "onepeace: seconds of the stages, over all threads: read T, decode T, model T, write T",
        "onepeace: 2 of 6 files failed:",
        rf"  {folder}/line\nbreak.jpg: not a picture of a known format (it begins with b'no pictu')",
        f"  {folder}/empty.ogg: the file is empty (0 bytes)",
    ]
    known = (
        f"onepeace: 2 files of them cannot be embedded, as before: onepeace index stats --problems --index '{index}'"
    )
    for verb in (["build", folder], ["add", folder / "dog.jpg", folder], ["update"]):
        assert run(*verb, "--index", index) == (0, "", ["onepeace: nothing to do: 6 files unchanged", known])
    (folder / "cat.jpg").rename(folder / "kitten.jpg")
    (folder / "dog.ogg").unlink()
    moved = "onepeace: 1 moved, 1 removed, 4 unchanged; 0 vectors in T s"
    assert run("update", "--index", index) == (0, "", [moved, known])
    assert run("update", "--index", index, "--quiet") == (0, "", [])

    code, out, err = run("stats", "--index", index)
    assert (code, err) == (0, [])
    about = dict(re.split(r" {2,}", line, maxsplit=1) for line in out.splitlines())
    assert about["files"] == "3 (2 image, 1 text)"
    assert about["vectors"] == "3 of 16 numbers"
    assert about["problems"] == "2 (--problems lists them)"
    code, out, _ = run("stats", "--index", index, "--problems")
    assert out.splitlines()[-2:] == [line.strip() for line in (
        rf"{folder}/line\nbreak.jpg: not a picture of a known format (it begins with b'no pictu')",
        f"{folder}/empty.ogg: the file is empty (0 bytes)",
    )]  # fmt: skip
    assert run("verify", "--index", index) == (0, f"{index}: 5 files, 3 vectors, all as they were written\n", [])
    assert run("remove", folder / "dog.jpg", "--index", index) == (0, "", ["onepeace: 1 file left the index"])
    assert run("remove", folder, "--index", index) == (0, "", ["onepeace: 4 files left the index"])


def test_export_and_import(run, folder, tmp_path):
    run("build", folder, "--index", tmp_path / "a")
    said = f"onepeace: 6 vectors of 16 numbers in {tmp_path}/v.npz"
    assert run("export", "--index", tmp_path / "a", "-o", tmp_path / "v.npz") == (0, "", [said])
    code, _, err = run("import", tmp_path / "v.npz", "--index", tmp_path / "b", "--name", "clap")
    assert (code, err) == (0, [f"onepeace: 4 files with 6 vectors of clap in {tmp_path}/b"])
    code, _, err = run("export", "--index", tmp_path / "a", "-o", tmp_path / "no" / "v.npz")
    assert (code, err) == (2, [f"onepeace: {tmp_path}/no/v.npz: there is no folder {tmp_path}/no"])


def test_silence_is_listed_though_it_is_in_the_index(run, tmp_path):
    import numpy as np
    import soundfile

    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    assert run("build", tmp_path / "silent.wav", "--index", tmp_path / "i")[0] == 0
    out = run("stats", "--index", tmp_path / "i", "--problems")[1]
    assert out.splitlines()[-1] == f"{tmp_path}/silent.wav: digital silence (in the index)"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["build", "FOLDER"], 2, "the following arguments are required: --index"),
        (["build", "FOLDER/nothing", "--index", "I"], 2, "nothing: no such file or folder"),
        (["build", "FOLDER", "--index", "I", "--window", "0"], 2, "'0' is not a number of seconds above 0"),
        (["build", "FOLDER", "--index", "I", "--hop", "nan"], 2, "'nan' is not a number of seconds above 0"),
        (["build", "FOLDER", "--index", "I", "--batch-size", "0"], 2, "'0' is not a whole number"),
        (["build", "FOLDER", "--index", "I", "--nearest", "best"], 2, "no search structure is called 'best'"),
        (["build", "FOLDER", "--index", "I", "--exclude", "!"], 1, "--exclude: Invalid git pattern"),
        (["build", "FOLDER", "--index", "FOLDER"], 1, "a folder with other files in it, and no index"),
        (["add", "FOLDER", "--index", "I"], 2, "I: no index there; make it with: onepeace index build"),
        (["update", "--index", "I"], 1, "I: no index there; make one with: onepeace index build FILES"),
        (["stats", "--index", "I"], 1, "I: no index there"),
        (["remove", "FOLDER", "--index", "I"], 1, "I: no index there"),
        (["verify", "--index", "I"], 1, "I: no index there"),
        (["repair", "--index", "I"], 1, "I: no index there"),
        (["bulid", "--index", "I"], 2, "invalid choice: 'bulid'"),
    ],
)
def test_what_goes_wrong_is_one_line(run, folder, tmp_path, arguments, code, message):
    places = {"FOLDER": str(folder), "I": str(tmp_path / "I")}
    arguments = [arguments[0], *(re.sub("FOLDER|^I$", lambda place: places[place[0]], a) for a in arguments[1:])]
    done, out, err = run(*arguments)
    assert (done, out, len(err)) == (code, "", 1)
    assert message in err[0]
    assert not (tmp_path / "I").exists()
