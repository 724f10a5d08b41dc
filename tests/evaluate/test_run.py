"""Recipes, the runner and `onepeace evaluate`, with embedders whose vectors are known: right, wrong and equal."""

import json
from pathlib import Path

import pytest
from support.evaluation import (
    RECIPE,
    SAME_CLASS,
    EqualEmbedder,
    KnownEmbedder,
    measure,
    recipe_of,
    values,
    write_recipe,
)
from support.small_shards import write_shard

import onepeace
from onepeace.cli import main
from onepeace.datasets import esc50
from onepeace.errors import UserError
from onepeace.evaluate.run import read_recipe

SHIPPED = Path(__file__).parents[2] / "recipes" / "evaluate" / "tiny.yaml"


def test_a_perfect_embedder_is_right_everywhere_and_one_that_mistakes_everything_is_not(recipe):
    right, wrong = (values(measure(KnownEmbedder(shift), recipe)) for shift in (0, 1))
    assert set(right.values()) == {1.0}
    # only where k reaches all candidates is a wrong order as good
    assert {name for name in right if wrong[name] == right[name]} == {
        ("drawings", "text to image R@10"),
        ("drawings", "image to text R@10"),
    }
    assert wrong["photos", "text to image R@1"] == wrong["sounds", "top-1 of 4"] == 0


def test_an_embedder_that_finds_everything_equal_hits_nothing(recipe):
    got = values(measure(EqualEmbedder(), recipe))
    assert all(value == 0 for (_, metric), value in got.items() if not metric.endswith("@10"))


def test_rows_carry_chance_and_counts(recipe):
    rows = {(row.set, row.metric): (row.chance, row.n) for row in measure(KnownEmbedder(), recipe)}
    assert rows["photos", "text to image R@1"] == (pytest.approx(1 / 2), 4)
    assert rows["photos", "image to text R@1"] == (pytest.approx(1 / 2), 2)
    # dog has two of four drawings, the others one
    assert rows["drawings", "text to image R@1"] == (pytest.approx((2 + 1 + 1) / 12), 3)
    assert rows["drawings", "image to text R@1"] == (pytest.approx(1 / 3), 4)
    assert rows["sounds", "top-1 of 4"] == (pytest.approx(1 / 4), 4)
    assert rows["sounds", "top-3 of 4"] == (pytest.approx(3 / 4), 4)


def test_sets_of_a_modality_the_model_lacks_are_left_out(recipe, caplog):
    rows = measure(KnownEmbedder(modalities=("text", "image")), recipe)
    assert {row.set for row in rows} == {"photos", "drawings"}
    assert "sounds: left out, the model has no audio" in caplog.text


def test_a_set_can_be_left_out(root):
    another = "sets.another={protocol: zero_shot, modality: image, shards: x.tar}"
    left_out, *rest = recipe_of(root, SAME_CLASS).sets
    assert list(recipe_of(root, SAME_CLASS, f"sets.{left_out}=null", another).sets) == [*rest, "another"]


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("photos", ".protocol=captioning", "protocol is 'captioning'; known: zero_shot, retrieval, same_class"),
        ("photos", ".shard=x", "shard is not a field; did you mean shards"),
        ("photos", ".at=[0]", "at is [0]; give at least one k, each at least 1"),
        ("photos", ".texts=titles", "texts 'titles' is not known; known: captions, names"),
        ("photos", "=3", "sets.photos should be a mapping of fields, not 3"),
        ("sounds", ".templates=[the sound]", "'the sound' has no {}"),
        ("sounds", ".modality=depth", "no default templates for depth; give templates (known: image, audio)"),
        ("both", ".other={modality: image}", "sets.both: give shards"),
        ("both", ".matches={}", "sets.both: matches is empty or has an empty list"),
    ],
)
def test_a_mistake_in_a_set_is_named(root, name, override, message):
    with pytest.raises(UserError) as error:
        recipe_of(root, SAME_CLASS if name == "both" else RECIPE, f"sets.{name}{override}")
    assert message in str(error.value)
    assert f"sets.{name}" in str(error.value)


def test_an_unset_data_variable_says_what_to_do(root, monkeypatch):
    recipe = read_recipe(write_recipe(root, RECIPE))
    monkeypatch.delenv("ONEPEACE_DATA", raising=False)
    with pytest.raises(UserError, match=r"ONEPEACE_DATA.*not set.*--data FOLDER \(train: data\.root=FOLDER\)"):
        recipe.data.folder()
    monkeypatch.setenv("ONEPEACE_DATA", str(root / "nowhere"))
    with pytest.raises(UserError, match="nowhere is not a folder"):
        recipe.data.folder()
    monkeypatch.setenv("ONEPEACE_DATA", str(root))
    assert measure(KnownEmbedder(), recipe)


@pytest.fixture
def known(monkeypatch):
    """Every model the command loads is the known embedder."""
    monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: KnownEmbedder())


def test_command_prints_a_table(root, known, capsys):
    assert main(["evaluate", str(write_recipe(root, RECIPE)), "sets.photos.at=[1, 2]", "--data", str(root)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["set", "metric", "value", "95%", "chance", "ratio", "n", "seconds"]
    want = ["photos", "text", "to", "image", "R@1", "100.0%", "100.0%..100.0%", "50.0%", "2.0", "4"]
    assert lines[0].split()[:10] == want
    assert len(lines) == 4 + 4 + 2


def test_command_measures_the_other_sets_when_one_fails(root, known, capsys):
    (root / "val/photos/a.tar.gz").unlink()
    assert main(["evaluate", str(write_recipe(root, RECIPE)), "--data", str(root), "--json"]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["set"] for row in rows} == {"drawings", "sounds"}
    assert set(rows[0]) == {
        *("model", "model_hash", "dtype", "version", "set", "metric", "value", "interval", "chance", "ratio", "n"),
        *("seconds", "protocol", "options", "prompts", "data_hash", "note"),
    }
    assert "set photos: " in err
    assert "Traceback" not in err


def test_command_keeps_what_was_measured_before_it_was_stopped(root, known, capsys, tmp_path, monkeypatch):
    def stopped(self, items):
        raise KeyboardInterrupt

    monkeypatch.setattr(KnownEmbedder, "encode_audio", stopped)
    arguments = ["evaluate", str(write_recipe(root, RECIPE)), "--data", str(root), "-o", str(tmp_path / "a.jsonl")]
    assert main(arguments) == 130
    assert "drawings" in capsys.readouterr().out
    saved = [json.loads(line)["set"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert set(saved) == {"photos", "drawings"}


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (("photos", "drawings", "sounds"), "no test set is left"),
        (("photos", "drawings"), "the model has the modalities of none of the sets"),
    ],
)
def test_command_that_measures_nothing_fails(root, monkeypatch, capsys, left_out, message):
    monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: KnownEmbedder(modalities=("text", "image")))
    overrides = [f"sets.{name}=null" for name in left_out]
    assert main(["evaluate", str(write_recipe(root, RECIPE)), "--data", str(root), *overrides]) == 1
    assert message in capsys.readouterr().err


def test_command_measures_a_model_folder_on_real_files(command, tmp_path, samples):
    names = ("dog", "cat", "bus")
    about = {name: {"captions": [f"a {name}"], "label": name} for name in names}
    pictures = {name: ((samples / f"images/{name}.jpg").read_bytes(), about[name]) for name in names}
    sounds = {name: ((samples / f"sounds/{name}.ogg").read_bytes(), about[name]) for name in names[:2]}
    write_shard(tmp_path / "val/pictures/a.tar.gz", pictures, "jpg")
    write_shard(tmp_path / "val/sounds/a.tar.gz", sounds, "ogg")
    recipe = """
sets:
  pictures: {protocol: retrieval, modality: image, shards: "val/pictures/*.tar.gz", at: [1, 3]}
  sounds: {protocol: zero_shot, modality: audio, shards: "val/sounds/*.tar.gz", at: [2]}
"""
    arguments = ["evaluate", write_recipe(tmp_path, recipe), "--data", tmp_path, "--json"]
    code, out, _ = command(*arguments)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["metric"], row["n"]) for row in rows] == [
        *(("text to image R@1", 3), ("text to image R@3", 3), ("image to text R@1", 3), ("image to text R@3", 3)),
        ("top-2 of 2", 2),
    ]
    assert [row["value"] for row in rows[1::2]] == [1.0, 1.0]

    pictures["cat"] = (b"no picture", about["cat"])
    write_shard(tmp_path / "val/pictures/a.tar.gz", pictures, "jpg")
    code, out, err = command(*arguments)
    assert code == 1
    assert [json.loads(line)["set"] for line in out.splitlines()] == ["sounds"]
    assert "set pictures: " in err


def test_shipped_matches_name_classes_of_esc50_and_distinct_pictures():
    matches = read_recipe(SHIPPED).sets["esc50_tiny_imagenet"].matches
    sounds = json.loads(Path(esc50.__file__).with_name("esc50_captions.json").read_text(encoding="utf-8"))
    assert set(matches) <= set(sounds)
    assert all(len(set(partners)) == len(partners) for partners in matches.values())
