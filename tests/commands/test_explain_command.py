"""The command explain: what it prints and writes, broken files, and wrong usage."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from onepeace.files.drawing import WIDTH, over_picture


@pytest.fixture
def bark(samples):
    return samples / "sounds" / "dog.ogg"


def test_json_of_a_picture(run_model, model, dog):
    answer = json.loads(run_model("explain", dog, "--text", "a dog", "--json").out)
    expected = model.explain({"image": dog}, "a dog")
    assert answer["path"] == str(dog)
    assert answer["grid"] == [8, 8]
    assert answer["modality"] == "image"
    assert np.allclose(answer["values"], expected.values, atol=1e-5)
    assert np.allclose(answer["peak"], expected.peak, atol=1e-3)
    assert answer["similarity"] == pytest.approx(expected.similarity, abs=1e-5)


def test_table_says_where_the_peak_is(run_model, model, dog, bark):
    header, picture, sound = run_model("explain", dog, bark, "a dog").out.splitlines()
    assert header.split() == ["similarity", "best", "at", "path"]
    assert re.search(r"\d+% across, \d+% down .*dog.jpg", picture)
    seconds, *_ = model.explain({"audio": bark}, "a dog").peak
    assert f"{seconds:.1f} s" in sound


def test_folder_gets_a_png_of_each_file_that_can_be_read(run_model, dog, bark, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(dog, folder)
    shutil.copy(bark, folder)
    (folder / "broken.jpg").write_bytes(dog.read_bytes()[:1000])
    (folder / "note.txt").write_text("a dog")

    options = ("--text", "a dog", "--draw", tmp_path / "maps", "--json")
    out, err = run_model("explain", folder, *options, code=1)

    paths = {json.loads(line)["path"] for line in out.splitlines()}
    assert paths == {str(folder / "dog.jpg"), str(folder / "dog.ogg")}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {"dog.jpg.png", "dog.ogg.png"}
    assert Image.open(tmp_path / "maps" / "dog.ogg.png").width == WIDTH
    assert "1 of 3 files failed" in err
    assert err.count("broken.jpg") == 1
    assert "1 text file" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no query; give words after the paths"),
        (("a dog", "--image", "cat.jpg"), "a dog: no such file or folder"),
        (("--text", "a", "--draw", "none/maps"), "no folder none"),
    ],
)
def test_wrong_usage_is_named(run_model, dog, arguments, message):
    out, err = run_model("explain", dog, *arguments, code=2)
    assert out == ""
    assert message in err


# ------------------------------------------------------------------ drawing


def brightness(picture):
    return np.asarray(picture, dtype=float).sum(axis=2)


def test_map_covers_its_area_and_is_brightest_at_its_largest_value():
    picture = Image.new("RGB", (80, 40), (128, 128, 128))
    values = np.array([[0.0, 1.0], [0.0, 0.0]])
    light = brightness(over_picture(picture, values, area=(0.25, 0, 0.75, 1)))
    assert (light[:, :20] == 3 * 128).all()
    assert (light[:, 60:] == 3 * 128).all()
    row, column = np.unravel_index(light.argmax(), light.shape)
    assert row < 20
    assert 40 <= column < 60
    assert light[:, 20:60].min() < 200
