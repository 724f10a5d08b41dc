"""Recipes, the runner and `onepeace evaluate`, with embedders whose vectors are known: right, wrong and equal."""

import json
from pathlib import Path

import pytest
from support.evaluation import (
    RECIPE,
    EqualEmbedder,
    KnownEmbedder,
    described,
    json_lines,
    recipe_of,
    table_lines,
    values,
    write_recipe,
)
from support.small_shards import write_shard

from onepeace.embed.classify import TEMPLATES
from onepeace.errors import UserError
from onepeace.evaluate.run import read_recipe

SHIPPED = Path(__file__).parents[2] / "recipes" / "evaluate" / "tiny.yaml"


def test_right_embedder_reaches_1_everywhere(measured):
    assert set(values(measured()).values()) == {1.0}


def test_equal_vectors_hit_nothing(measured):
    for (_, metric), value in values(measured(embedder=EqualEmbedder())).items():
        assert value == 0 or metric.endswith("@10")


@pytest.mark.parametrize(
    ("name", "metric", "chance", "n"),
    [
        ("photos", "text to image R@1", 1 / 2, 4),
        ("photos", "image to text R@1", 1 / 2, 2),
        # dog has two of four drawings, the other two names one
        ("drawings", "text to image R@1", (2 + 1 + 1) / 12, 3),
        ("drawings", "image to text R@1", 1 / 3, 4),
        ("sounds", "top-1 of 4", 1 / 4, 4),
        ("sounds", "top-3 of 4", 3 / 4, 4),
    ],
)
def test_rows_carry_chance_and_counts(measured, name, metric, chance, n):
    rows = {(row.set, row.metric): row for row in measured()}

    assert rows[name, metric].chance == pytest.approx(chance)
    assert rows[name, metric].n == n


def test_sets_of_a_missing_modality_are_left_out(measured, caplog):
    rows = measured(embedder=KnownEmbedder(modalities=("text", "image")))

    assert {row.set for row in rows} == {"photos", "drawings"}
    assert "sounds: left out, the model has no audio" in caplog.text


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("photos.protocol=captioning", "zero_shot, retrieval"),
        ("photos.shard=x", "shards"),
        ("photos.protocoll=zero_shot", "did you mean protocol?"),
        ("photos.at=[0]", "[0]"),
        ("photos.texts=titles", "titles"),
        ("photos=3", "mapping"),
        ("sounds.templates=[the sound]", "the sound"),
        ("sounds.modality=depth", "depth"),
    ],
)
def test_mistake_in_a_set_is_named(root, override, word):
    with pytest.raises(UserError) as error:
        recipe_of(root, RECIPE, f"sets.{override}")

    name = override.partition(".")[0].partition("=")[0]
    assert f"sets.{name}" in str(error.value)
    assert word in str(error.value)


@pytest.fixture
def data_root(root):
    """The folder of a recipe that does not name one."""
    return read_recipe(write_recipe(root, RECIPE)).data


def test_data_root_is_that_of_the_environment(root, data_root, monkeypatch):
    monkeypatch.setenv("ONEPEACE_DATA", str(root))
    assert data_root.folder() == root


def test_data_root_that_is_not_set_is_an_error(data_root, monkeypatch):
    monkeypatch.delenv("ONEPEACE_DATA", raising=False)
    with pytest.raises(UserError, match=r"ONEPEACE_DATA.*--data FOLDER"):
        data_root.folder()


def test_command_prints_a_table(evaluate):
    code, out, _ = evaluate("sets.photos.at=[1, 2]")
    columns, *rows = table_lines(out)

    assert code == 0
    assert columns == "set metric value 95% chance ratio n seconds"
    assert rows[0].startswith("photos text to image R@1 100.0% 100.0%..100.0% 50.0% 2.0 4 ")
    assert len(rows) == 3 + 2 + 2  # none for R@2 of two pictures, and for R@10 of four drawings and their names


def sets_of(lines):
    """The names of the sets in lines of JSON."""
    return {row["set"] for row in json_lines(lines)}


def test_command_goes_on_when_a_set_fails(root, evaluate):
    (root / "val/photos/a.tar.gz").unlink()

    code, out, err = evaluate("--json")

    assert code == 1
    assert sets_of(out) == {"drawings", "sounds"}
    assert "set photos: " in err
    assert "Traceback" not in err


def test_command_prints_the_circumstances_as_json(evaluate):
    _, out, _ = evaluate("--json")
    row, *_, row_of_sounds = json_lines(out)

    assert " ".join(row) == (
        "model model_hash dtype version set metric value chance n seconds interval ratio "
        "protocol options prompts data_hash note"
    )
    assert row_of_sounds["prompts"] == list(TEMPLATES["audio"])


def test_figures_are_of_float32_unless_told_otherwise(evaluate):
    _, out, _ = evaluate("--json")
    _, out_in_bfloat16, _ = evaluate("--json", "--dtype", "bfloat16")

    assert {row["dtype"] for row in json_lines(out)} == {"float32"}
    assert {row["dtype"] for row in json_lines(out_in_bfloat16)} == {"bfloat16"}


def data_hash(root, measured, shard="a", key="1", content=b"dog", caption="a dog"):
    """The hash of a set of one photograph."""
    path = root / f"val/photos/{shard}.tar.gz"
    write_shard(path, {key: described(content, caption)})
    rows = measured(f"sets.photos.shards=val/photos/{path.name}", "sets.drawings=null", "sets.sounds=null")
    return rows[0].about["data_hash"]


@pytest.mark.parametrize(
    "change",
    [
        {"key": "2"},
        {"content": b"a dog"},
        {"caption": "dog"},
    ],
)
def test_data_hash_is_of_everything_that_was_read(root, measured, change):
    assert data_hash(root, measured, **change) != data_hash(root, measured)


def test_command_keeps_what_was_measured_before_a_stop(root, evaluate, monkeypatch):
    def stop(self, items):
        raise KeyboardInterrupt

    monkeypatch.setattr(KnownEmbedder, "encode_audio", stop)

    code, out, _ = evaluate("-o", root / "a.jsonl")

    assert code == 130
    assert "drawings" in out
    assert sets_of((root / "a.jsonl").read_text()) == {"photos", "drawings"}


@pytest.mark.parametrize(
    ("left_out", "word"),
    [
        (["photos", "drawings", "sounds"], "null"),
        (["photos", "drawings"], "modalities"),
    ],
)
def test_command_that_measures_nothing_fails(evaluate, left_out, word):
    embedder = KnownEmbedder(modalities=("text", "image"))

    code, _, err = evaluate(*[f"sets.{name}=null" for name in left_out], embedder=embedder)

    assert code == 1
    assert word in err


def test_shipped_matches_are_classes_of_esc50_and_distinct_pictures():
    matches = read_recipe(SHIPPED).sets["esc50_tiny_imagenet"].matches
    sounds = json.loads((SHIPPED.parents[1] / "layouts" / "esc50_captions.json").read_text(encoding="utf-8"))

    assert set(matches) <= set(sounds)
    for partners in matches.values():
        assert len(set(partners)) == len(partners)
