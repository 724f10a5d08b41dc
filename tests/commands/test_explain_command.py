"""The command explain: what it prints and writes, broken files, and wrong usage."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from onepeace.files.heatmap import WIDTH, bars, heat_at, over_picture, ticks


@pytest.fixture
def dog(samples):
    return samples / "images" / "dog.jpg"


@pytest.fixture
def bark(samples):
    return samples / "sounds" / "dog.ogg"


def test_the_table_and_the_numbers_are_the_same(command, model, dog, bark):
    code, out, _ = command("explain", dog, bark, "--text", "a dog", "--json")
    picture, sound = map(json.loads, out.splitlines())
    assert code == 0
    found = model.explain({"image": dog}, "a dog")
    assert picture["path"] == str(dog)
    assert picture["grid"] == [8, 8]
    assert picture["modality"] == "image"
    assert np.allclose(picture["values"], found.values, atol=1e-5)
    assert np.allclose(picture["peak"], found.peak, atol=1e-3)
    assert picture["similarity"] == pytest.approx(found.similarity, abs=1e-5)
    found = model.explain({"audio": bark}, "a dog")
    assert np.allclose(sound["values"], found.values, atol=1e-5)
    assert np.allclose(sound["seconds"], found.positions, atol=1e-3)
    code, out, _ = command("explain", dog, bark, "--text", "a dog")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["similarity", "best", "at", "path"]
    assert re.search(r"\d+% across, \d+% down .*dog.jpg", lines[1])
    assert f"{sound['peak'][0]:.1f} s" in lines[2]


def test_a_picture_or_a_sound_can_be_asked_for(command, model, samples, dog):
    for kind, name in (("image", "images/cat.jpg"), ("audio", "sounds/cat.ogg")):
        code, out, _ = command("explain", dog, f"--{kind}", samples / name, "--json")
        found = model.explain({"image": dog}, {kind: samples / name})
        assert code == 0
        assert np.allclose(json.loads(out)["values"], found.values, atol=1e-5)


def test_a_png_of_a_picture_and_of_a_sound(command, dog, bark, tmp_path):
    assert command("explain", dog, bark, "--text", "a dog", "--draw", tmp_path / "maps")[0] == 0
    drawn, plain = Image.open(tmp_path / "maps" / "dog.jpg.png"), Image.open(dog)
    assert drawn.format == "PNG"
    assert drawn.width / drawn.height == pytest.approx(plain.width / plain.height, abs=0.02)
    small = np.asarray(plain.convert("RGB").resize(drawn.size), dtype=float)
    assert np.abs(np.asarray(drawn, dtype=float) - small).mean() > 10
    assert Image.open(tmp_path / "maps" / "dog.ogg.png").width == WIDTH


def test_a_folder_gets_a_png_of_each_file_that_can_be_read(command, dog, samples, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in (dog, samples / "images" / "cat.jpg"):
        shutil.copy(path, folder)
    (folder / "broken.jpg").write_bytes(dog.read_bytes()[:1000])
    (folder / "note.txt").write_text("a dog")
    code, out, err = command("explain", folder, "--text", "a dog", "--draw", tmp_path / "maps", "--json")
    assert code == 1
    assert {json.loads(line)["path"] for line in out.splitlines()} == {str(folder / "cat.jpg"), str(folder / "dog.jpg")}
    assert "1 of 3 files failed" in err
    assert err.count("broken.jpg") == 1
    assert "1 text file" in err
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"cat.jpg.png", "dog.jpg.png"}
    code, _, err = command("explain", folder / "note.txt", "--text", "a dog")
    assert (code, "reads none of the files" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "one of the arguments --text --image --audio is required"),
        (("--image", "none.jpg"), "none.jpg: no such file"),
        (("--text", "a", "--draw", "none/maps"), "there is no folder none"),
    ],
)
def test_wrong_usage_is_named(command, dog, arguments, message):
    code, out, err = command("explain", dog, *arguments)
    assert code == 2
    assert out == ""
    assert message in err


def test_the_map_covers_its_area_and_is_brightest_at_its_largest_value():
    picture, values = Image.new("RGB", (80, 40), (128, 128, 128)), np.array([[0.0, 1.0], [0.0, 0.0]])
    light = np.asarray(over_picture(picture, values, area=(0.25, 0, 0.75, 1)), dtype=float).sum(axis=2)
    assert (light[:, :20] == 3 * 128).all()
    assert (light[:, 60:] == 3 * 128).all()
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert row < 20
    assert 40 <= column < 60
    assert light[:, 20:60].min() < 200
    flat = np.asarray(over_picture(picture, np.full((2, 2), 0.3)))
    assert (flat == flat[0, 0]).all()


def test_the_time_line():
    assert ticks(5.0) == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]
    assert ticks(95)[1] == 10
    assert bars(np.array([0.5, -1.0, 0.25, 0.0]), 2).tolist() == [1.0, 0.25]
    assert bars(np.zeros(9), 3).tolist() == [0, 0, 0]
    times = np.array([[0.0, 1.0], [1.0, 2.0]])
    assert heat_at(np.array([0.1, 0.5, 1.0, 1.9]), times, np.array([3.0, 5.0])).tolist() == [0, 0, 0.5, 1]
