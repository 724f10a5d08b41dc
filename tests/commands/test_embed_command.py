"""`onepeace embed`: vectors of files, tables and texts, streamed to a file."""

import io
import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
from support.indexes import content

from onepeace.index import embed_files, vector_file


@pytest.fixture
def folder(tmp_path, samples):
    """A picture, a sound of several windows, a text and a broken picture."""
    path = tmp_path / "files"
    path.mkdir()
    shutil.copy(samples / "images" / "dog.jpg", path)
    soundfile.write(path / "long.wav", np.random.default_rng(0).normal(scale=0.1, size=20 * 16000), 16000)
    (path / "words.txt").write_text("a dog")
    (path / "broken.jpg").write_bytes(b"no picture")
    return path


def test_vectors_are_those_of_an_index_with_their_times(folder, tmp_path, command):
    code, _, err = command("embed", folder, "-o", tmp_path / "v.npz")
    assert (code, "broken.jpg" in err) == (1, True)
    command("index", "build", tmp_path / "i", folder)
    indexed = content(tmp_path / "i")
    with np.load(tmp_path / "v.npz") as data:
        columns = {name: data[name] for name in data.files}
    assert {*columns["paths"].tolist()} == {path for path, (_, vectors) in indexed.items() if len(vectors)}
    for path, (about, vectors) in indexed.items():
        rows = columns["paths"] == path
        np.testing.assert_allclose(columns["vectors"][rows], vectors, atol=1e-5)
        assert columns["kinds"][rows].tolist() == len(vectors) * [about["modality"]]
    (spans,) = (about["spans"] for path, (about, _) in indexed.items() if path.endswith("long.wav"))
    sound = columns["modalities"] == "audio"
    assert sum(sound) > 5
    assert columns["starts"][sound].tolist() == [span.start for span in spans]
    assert columns["ends"][sound].tolist() == [span.end for span in spans]


def test_texts_come_first_and_are_read_as_they_are_needed(tmp_path, command, monkeypatch, model):
    monkeypatch.setattr(vector_file, "BLOCK", 2)
    monkeypatch.setattr(embed_files, "BLOCK", 2)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat\n\n  a tree\r\n")))
    (tmp_path / "t.csv").write_text("caption,n\na river,1\n")
    out = tmp_path / "v.jsonl"
    assert command("embed", "-", "--text", "a dog", tmp_path / "t.csv", "-o", out)[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"] for row in rows] == ["text::1", "text::2", "text::3", f"{tmp_path / 't.csv'}::2"]
    expected = model.encode_text(["a dog", "a cat", "a tree", "a river"])
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--text"),
        (["none.jpg"], "none.jpg: no such"),
        (["--text", " "], "--text"),
        (["--text", "a", "-o", "v.csv"], ".csv"),
        (["EMPTY"], "no image"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(tmp_path, command, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    output = [] if "-o" in arguments else ["-o", "v.npz"]
    code, out, err = command("embed", *arguments, *output)
    assert (code, out) == (2, "")
    assert named in err.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["EMPTY"]


def test_file_is_not_written_if_all_fails(tmp_path, command):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    code, _, err = command("embed", tmp_path / "broken.jpg", "-o", tmp_path / "v.npz")
    assert (code, "not written" in err, (tmp_path / "v.npz").exists()) == (1, True, False)
