"""`onepeace embed`: vectors with their paths in one file, and nothing but our own lines on stderr."""

import io
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from support.broken_files import write_broken, write_good

from onepeace.cli import main


def read_npz(path):
    with np.load(path) as data:
        return data["vectors"], data["paths"].tolist(), data["modalities"].tolist()


def read_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path).to_pydict()
    return np.array(table["vector"], np.float32), table["path"], table["modality"]


@pytest.mark.parametrize("read", [read_npz, read_parquet])
def test_vectors_are_written_with_their_paths(command, model, samples, tmp_path, read):
    folder, good, broken = tmp_path / "mixed", [samples / "images" / "cat.jpg", samples / "sounds" / "cat.ogg"], {}
    if read is read_npz:  # under awkward names, and broken ones
        good, broken = write_good(folder / "real", samples, 12), write_broken(folder / "broken", samples)
    target = tmp_path / "out" / f"out.{read.__name__.removeprefix('read_')}"
    target.parent.mkdir()
    code, out, err = command("embed", *([folder] if broken else good), "-o", target)
    assert (code, out) == (bool(broken), "")
    for name, reason in broken.items():
        shown = str(folder / "broken" / name).replace("\n", "\\n")
        (line,) = [line for line in err.splitlines() if f"  {shown}: " in line]
        assert reason in line
    vectors, paths, modalities = read(target)
    assert sorted(paths) == sorted(map(str, good))
    assert vectors.dtype == np.float32
    expected = model.encode([{m: Path(p)} for p, m in zip(paths, modalities, strict=True)])
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)
    assert os.listdir(target.parent) == [target.name]  # nothing temporary is left


def test_what_is_there_is_replaced_only_when_asked_for_and_by_vectors(command, samples, tmp_path):
    (tmp_path / "fake.jpg").write_bytes(b"no picture")
    target = tmp_path / "v.npz"
    target.write_bytes(b"older")
    for arguments, expected in (([samples], 2), ([tmp_path / "fake.jpg", "--force"], 1)):
        code, _, err = command("embed", *arguments, "-o", target)
        assert (code, target.read_bytes()) == (expected, b"older")
        assert "v.npz" in err
    assert command("embed", samples / "images" / "cat.jpg", "-o", target, "--force")[0] == 0
    assert len(read_npz(target)[0]) == 1


def test_a_named_file_is_known_by_its_content(command, samples, tmp_path):
    (tmp_path / "dog.backup").write_bytes((samples / "images" / "dog.jpg").read_bytes())
    (tmp_path / "notes.md").write_text("# notes")
    code, _, err = command("embed", tmp_path / "dog.backup", tmp_path / "notes.md", "-o", tmp_path / "v.npz")
    assert (code, read_npz(tmp_path / "v.npz")[2]) == (1, ["image"])
    assert "notes.md: " in err


def damaged_mp3():
    """An MP3 with a hole, about which libmpg123 prints notes of its own."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).normal(0, 0.1, 32000), 16000, format="MP3")
    sound = buffer.getvalue()
    return sound[:2000] + bytes(1500) + sound[3500:]


def test_nothing_but_our_own_lines_reaches_stderr(random_folder, tmp_path, monkeypatch, capfd):
    """Sounds are decoded in threads, some damaged, and some silent, about which there is a warning."""
    for index in range(6):
        (tmp_path / f"{index}.mp3").write_bytes(damaged_mp3())
        soundfile.write(tmp_path / f"{index}.wav", np.zeros(16000), 16000)
    monkeypatch.setattr(logging.root, "handlers", [])
    with open(2, "w", buffering=1, closefd=False) as stderr:  # as in a process of its own
        monkeypatch.setattr(sys, "stderr", stderr)
        main(["embed", str(tmp_path), "-o", str(tmp_path / "v.npz"), "--model", str(random_folder), "--device", "cpu"])
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("onepeace: loading the model ")
    assert sum(line.startswith(f"onepeace: {tmp_path}/") and ".wav: " in line for line in lines) == 6
    assert sum(line.startswith(f"  {tmp_path}/") and ".mp3: " in line for line in lines) == 6
    assert len(lines) == 15  # and how many failed and how many vectors are written
