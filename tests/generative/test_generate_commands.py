"""`onepeace caption`, `answer` and `ground`: what is printed of pictures, and of files that are none."""

import json
import os
import shutil
from functools import partial

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.generative import save_small_ofa
from support.media import TWO_SCENES

import onepeace
from onepeace.files.drawing import Drawings


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    """The folder of a small model that writes."""
    return save_small_ofa(tmp_path_factory.mktemp("ofa") / "model")


@pytest.fixture
def generate(run_model, generator):
    return partial(run_model, model=generator)


@pytest.fixture
def cat(samples):
    return samples / "images" / "cat.jpg"


@pytest.fixture
def pictures(tmp_path, samples):
    """Two, a broken one and a text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("cat.jpg", "bus.jpg"):
        shutil.copy(samples / "images" / name, folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (folder / "notes.txt").write_text("left out", encoding="utf-8")
    return folder


def answers_by_name(out):
    answers = [json.loads(line) for line in out.splitlines()]
    return {os.path.basename(answer["path"]): answer for answer in answers}


# ------------------------------------------------------------------ captions


def test_caption_gives_an_object_for_each_picture(generate, generator, pictures):
    out, err = generate("caption", pictures, "--json", code=1)

    assert "1 of 3 files failed" in err
    assert "broken.png: " in err
    answers = answers_by_name(out)
    assert set(answers) == {"bus.jpg", "cat.jpg"}
    answer = answers["cat.jpg"]
    (expected,) = onepeace.load_generator(generator, device="cpu").caption([pictures / "cat.jpg"])
    assert answer["caption"] == expected.text
    assert answer["score"] == pytest.approx(expected.score, abs=1e-4)
    assert 0 < answer["confidence"] < 1


def test_caption_by_a_model_of_vectors_is_refused(run_model, cat):
    assert run_model("caption", cat, model="tiny", code=1).err.startswith("onepeace: tiny: cannot write")


def test_caption_of_silence_is_unsure_and_says_how_much_was_heard(run_model, tmp_path, caplog):
    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    noise = np.random.default_rng(0).normal(0, 0.1, 16 * 16000)
    soundfile.write(tmp_path / "long.wav", noise, 16000)
    shutil.copy(TWO_SCENES, tmp_path / "trip.webm")

    out, err = run_model("caption", tmp_path, "--json", model="tiny-captions")

    answers = answers_by_name(out)
    assert answers.keys() == {"silent.wav", "long.wav"}
    assert answers["silent.wav"]["sure"] is False
    assert "silent.wav: digital silence" in caplog.text
    assert "long.wav: only the first 15 of 16 seconds are read" in caplog.text
    assert "1 video skipped" in err


# ------------------------------------------------------------------ answers


def test_answer_is_one_of_several(generate, cat):
    options = ("--text", "what?", "--labels", "a cat, a bus", "--json")
    answer = json.loads(generate("answer", cat, *options).out)
    scores = answer["scores"]
    assert set(scores) == {"a cat", "a bus"}
    assert answer["answer"] == max(scores, key=scores.get)


@pytest.mark.parametrize("question", [[], ["--text", " "], ["what?", "--text", "what?"]])
def test_answer_needs_a_question(generate, cat, question):
    (line,) = generate("answer", cat, *question, code=2).err.splitlines()
    assert "give words" in line


# ------------------------------------------------------------------ boxes


def test_ground_draws_the_box(generate, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = json.loads(generate("ground", pictures / "bus.jpg", "--text", "the bus", "--draw", "boxes", "--json").out)
    assert answer["text"] == "the bus"
    assert answer["picture"] == "boxes/bus.jpg.png"
    picture = Image.open(pictures / "bus.jpg").convert("RGB")
    x0, y0, x1, y1 = answer["box"]
    assert 0 <= min(x0, x1) <= max(x0, x1) <= picture.width
    assert 0 <= min(y0, y1) <= max(y0, y1) <= picture.height
    drawn = Image.open(tmp_path / "boxes/bus.jpg.png")
    assert drawn.format == "PNG"
    assert drawn.size == picture.size
    assert drawn.tobytes() != picture.tobytes()


@pytest.mark.parametrize(
    ("text", "folder", "message"),
    [
        ("the bus", "no/such", "no/such: there is no folder no"),
        ("", "boxes", "no phrase to locate; give words"),
    ],
)
def test_ground_refuses_wrong_usage(generate, cat, tmp_path, monkeypatch, text, folder, message):
    monkeypatch.chdir(tmp_path)
    err = generate("ground", cat, "--text", text, "--draw", folder, code=2).err
    assert err.startswith(f"onepeace: {message}")


def test_drawings_of_files_of_one_name_are_kept_apart(tmp_path):
    drawings = Drawings(tmp_path / "out")
    picture = Image.new("RGB", (4, 4))
    names = []
    for path in ("a/x.jpg", "b/x.jpg", "x.png", "x.jpg"):
        names.append(drawings.save(picture, tmp_path / path).name)
    assert names == ["x.jpg.png", "x.jpg-2.png", "x.png.png", "x.jpg-3.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names)
