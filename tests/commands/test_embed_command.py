"""`onepeace embed`: vectors of files, tables and texts in a file."""

import io
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from support.crash import on_a_full_disk
from support.indexes import content

from onepeace.index import export


@pytest.fixture
def folder(tmp_path, dog):
    """A picture, a sound of several windows, a text and a broken picture."""
    path = tmp_path / "files"
    path.mkdir()
    shutil.copy(dog, path)
    noise = np.random.default_rng(0).normal(scale=0.1, size=20 * 16000)
    soundfile.write(path / "long.wav", noise, 16000)
    (path / "words.txt").write_text("a dog")
    (path / "broken.jpg").write_bytes(b"no picture")
    return path


def test_vectors_are_those_of_an_index(folder, tmp_path, run_model):
    assert "broken.jpg" in run_model("embed", folder, "-o", tmp_path / "v.npz", code=1).err
    run_model("index", "build", tmp_path / "i", folder, code=1)

    indexed = content(tmp_path / "i")
    del indexed[str(folder / "broken.jpg")]
    with np.load(tmp_path / "v.npz") as columns:
        assert set(columns["paths"].tolist()) == set(indexed)
        for path, (about, vectors) in indexed.items():
            rows = columns["paths"] == path
            np.testing.assert_allclose(columns["vectors"][rows], vectors, atol=1e-5)
            assert set(columns["kinds"][rows].tolist()) == {about["kind"]}


def test_texts_come_first_in_their_order_also_equal_ones(tmp_path, run_model, monkeypatch, model):
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(export, "ROW_GROUP", 2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat\n\n  a tree\r\na cat")))
    table = tmp_path / "t.csv"
    table.write_text("caption,n\na river,1\n")

    err = run_model("embed", "-", "--text", "a dog", table, "-o", tmp_path / "v.parquet").err

    assert "5 vectors" in err
    rows = parquet.read_table(tmp_path / "v.parquet").to_pylist()
    assert [row["path"] for row in rows] == ["text::1", "text::2", "text::3", "text::4", f"{table}::2"]
    expected = model.encode_text(["a dog", "a cat", "a tree", "a cat", "a river"])
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-5)


@pytest.mark.parametrize("names", [["dog.jpg", "gone.jpg"], ["gone.jpg"]])
def test_row_of_a_table_without_its_file_is_named_and_left_out(folder, tmp_path, run_model, names):
    table = folder / "t.csv"
    table.write_text("\n".join(["file,caption", *(f"{name},a dog" for name in names)]))

    err = run_model("embed", table, "-o", tmp_path / "v.npz", code=1).err

    assert "gone.jpg" in err
    assert (tmp_path / "v.npz").exists() == (len(names) == 2)
    if len(names) == 2:
        with np.load(tmp_path / "v.npz") as arrays:
            assert arrays["paths"].tolist() == [str(folder / "dog.jpg")]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-o", "v.npz"], "--text"),
        (["--text", " ", "-o", "v.npz"], "--text"),
        (["--text", "a", "-o", "v.csv"], ".csv"),
    ],
)
def test_wrong_usage_is_named_and_nothing_is_written(tmp_path, run_model, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    out, err = run_model("embed", *arguments, code=2)
    assert out == ""
    assert word in err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["embed v.npz -o v.npz --force", "evaluate v.npz -o v.npz --force"])
def test_input_is_never_overwritten(tmp_path, run, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.npz").write_bytes(b"the only copy")
    assert "v.npz: is read by this command" in run(*line.split(), code=2).err
    assert (tmp_path / "v.npz").read_bytes() == b"the only copy"


def test_file_of_another_kind_is_not_overwritten_through_a_link(folder, tmp_path, run):
    before = (folder / "dog.jpg").read_bytes()
    (tmp_path / "v.npz").symlink_to(folder / "dog.jpg")
    assert "is a link to" in run("embed", folder, "-o", tmp_path / "v.npz", "--force", code=2).err
    assert (folder / "dog.jpg").read_bytes() == before


KILLED_AFTER_ITS_RENAME = """
import os, signal, sys
from onepeace.cli import main
target = sys.argv[1]


def kill(event, _):
    if event != "os.kill" and os.path.exists(target):
        os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(kill)
main(["embed", "--text", "a dog", "-o", target, "--model", sys.argv[2]])
"""


def test_kill_after_the_file_has_its_name_leaves_nothing(tmp_path, random_folder):
    command = [sys.executable, "-c", KILLED_AFTER_ITS_RENAME, str(tmp_path / "v.npz"), str(random_folder)]
    assert subprocess.run(command, check=False).returncode < 0

    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]


def test_full_disk_names_the_file_of_the_user(tmp_path, random_folder):
    target = tmp_path / "v.npz"
    code, err = on_a_full_disk(50_000, "embed", "--text", "a dog", "-o", target, "--model", random_folder)

    assert code == 1
    assert re.fullmatch(rf"onepeace: {target}: cannot be written \(.*\)", err.splitlines()[-1]), err
    assert not [*tmp_path.iterdir()]
