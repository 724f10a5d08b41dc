"""`onepeace caption`, `answer` and `ground`: what is printed of pictures, and of files that are none."""

import json
import os

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.generative import save_small_ofa
from support.media import TWO_SCENES

import onepeace
from onepeace.cli import main
from onepeace.files.drawing import Drawings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_small_ofa(tmp_path_factory.mktemp("ofa") / "model")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, samples):
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("cat.jpg", "bus.jpg"):
        (folder / name).write_bytes((samples / "images" / name).read_bytes())
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "notes.txt").write_text("left out", encoding="utf-8")
    return folder


@pytest.fixture
def run(folder, capsys):
    def command(*arguments):
        code = main([*map(str, arguments), "--model", str(folder), "--device", "cpu"])
        return code, *capsys.readouterr()

    return command


def by_name(out, folder):
    return {json.loads(line)["path"].removeprefix(f"{folder}/"): json.loads(line) for line in out.splitlines()}


def test_caption_gives_a_table_or_an_object_for_each_picture(run, pictures, folder):
    head, row = run("caption", pictures / "cat.jpg", "--batch-size", "1")[1].splitlines()
    assert head.split() == ["caption", "confidence", "path"]
    assert row.endswith("cat.jpg")
    code, out, err = run("caption", pictures, "--json")
    found = by_name(out, pictures)
    assert code == 1
    assert "1 of 3 files failed" in err
    assert "broken.png: " in err
    assert set(found) == {"bus.jpg", "cat.jpg"}
    (expected,) = onepeace.load_generator(folder, device="cpu").caption([pictures / "cat.jpg"])
    assert found["cat.jpg"]["caption"] == expected.text
    assert found["cat.jpg"]["score"] == pytest.approx(expected.score, abs=1e-4)
    assert 0 < found["cat.jpg"]["confidence"] < 1


def test_answer_is_free_or_one_of_several(run, pictures):
    code, out, _ = run("answer", pictures / "cat.jpg", "--question", "what is it?", "--json")
    assert code == 0
    assert set(json.loads(out)) == {"path", "question", "answer", "score", "confidence"}
    arguments = ["answer", pictures / "cat.jpg", "--question", "what is it?", "--labels", "a cat, a bus", "--json"]
    code, out, _ = run(*arguments)
    found = json.loads(out)
    assert found["answer"] == max(found["scores"], key=found["scores"].get)
    assert set(found["scores"]) == {"a cat", "a bus"}
    code, _, err = run("answer", pictures, "--question", " ")
    assert (code, err) == (2, "onepeace: --question is empty\n")


def test_ground_draws_the_box(run, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("ground", pictures / "bus.jpg", "--text", "the bus", "--draw", "boxes", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["text"], found["picture"]) == ("the bus", "boxes/bus.jpg.png")
    size = Image.open(pictures / "bus.jpg").size
    assert all(0 <= corner <= size[i % 2] for i, corner in enumerate(found["box"]))
    drawn = Image.open(tmp_path / found["picture"])
    assert (drawn.format, drawn.size) == ("PNG", size)
    assert drawn.tobytes() != Image.open(pictures / "bus.jpg").convert("RGB").tobytes()
    (tmp_path / "afile").touch()
    for text, draw, message in (
        ("the bus", "no/such", "no/such: there is no folder no"),
        ("the bus", "afile", "afile: is a file; name a folder"),
        ("", "boxes", "--text is empty"),
    ):
        code, _, err = run("ground", pictures / "bus.jpg", "--text", text, "--draw", draw)
        assert (code, err) == (2, f"onepeace: {message}\n")


def test_drawings_of_files_of_one_name_are_kept_apart(tmp_path):
    drawings = Drawings(tmp_path / "out")
    drawn = Image.new("RGB", (4, 4))
    places = [drawings.save(drawn, tmp_path / path).name for path in ("a/x.jpg", "b/x.jpg", "x.png", "x.jpg")]
    assert places == ["x.jpg.png", "x.jpg-2.png", "x.png.png", "x.jpg-3.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(places)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
def test_names_that_are_not_utf8_are_printed_as_json(run, pictures, tmp_path):
    named = tmp_path / os.fsdecode(b"caf\xe9.jpg")
    named.write_bytes((pictures / "cat.jpg").read_bytes())
    code, out, _ = run("caption", named, "--json")
    assert code == 0
    assert out.isascii()
    assert json.loads(out)["path"] == str(named)


def test_model_of_vectors_writes_nothing(capsys, pictures):
    assert main(["caption", str(pictures), "--model", "tiny"]) == 1
    assert capsys.readouterr().err.startswith("onepeace: tiny: writes nothing; name a model that does")


def test_caption_of_silence_is_unsure_and_says_how_much_was_heard(tmp_path, capsys, caplog):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16 * 16000), 16000)
    (tmp_path / "trip.webm").write_bytes(TWO_SCENES.read_bytes())
    assert main(["caption", str(tmp_path), "--model", "tiny-captions", "--device", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    found = by_name(out, tmp_path)
    assert found.keys() == {"silent.wav", "long.wav"}
    assert found["silent.wav"]["sure"] is False
    assert "silent.wav: digital silence" in caplog.text
    assert "long.wav: only the first 15 of 16 seconds are read" in caplog.text
    assert "1 video skipped" in err
