"""Zero-shot classification: which classes, which templates, and samples that do not fit."""

import json

import pytest
from support.evaluation import RECIPE, WORDS, KnownEmbedder, measure, recipe_of, values
from support.small_shards import write_shard

from onepeace.embed.zero_shot import TEMPLATES, fill
from onepeace.errors import UserError


@pytest.mark.parametrize(("modality", "suffix"), [("image", "png"), ("audio", "ogg")])
def test_templates_default_to_those_of_the_modality(root, modality, suffix):
    write_shard(root / "val/things/a.tar.gz", {"1": (b"dog", {"label": "dog"})}, suffix)
    things = "{protocol: zero_shot, shards: 'val/things/*', classes: val/sounds/classes.json}"
    set_modality = f"sets.things.modality={modality}"
    embedder, own = KnownEmbedder(), KnownEmbedder()
    measure(embedder, recipe_of(root, f"sets: {{things: {things}}}", set_modality))
    assert embedder.seen == [fill(template, word) for word in WORDS for template in TEMPLATES[modality]]
    measure(own, recipe_of(root, f"sets: {{things: {things}}}", set_modality, "sets.things.templates=['hear {a}']"))
    assert own.seen == ["hear a dog", "hear a cat", "hear an acorn", "hear a rain"]


def test_classes_default_to_the_labels_of_the_shards(root):
    recipe = recipe_of(root, RECIPE, "sets.sounds.classes=null")
    assert values(measure(KnownEmbedder(), recipe))["sounds", "top-1 of 4"] == 1


def test_a_part_of_the_shards_is_chosen_by_key(root):
    rows = measure(KnownEmbedder(), recipe_of(root, RECIPE, "sets.sounds.keys='[01]'"))
    whole = measure(KnownEmbedder(), recipe_of(root, RECIPE))
    counts, full = ([row.n for row in found if row.set == "sounds"] for found in (rows, whole))
    assert 0 < counts[0] < full[0]
    assert [row.chance for row in rows] == [row.chance for row in whole]  # among all classes
    with pytest.raises(UserError, match="no key"):
        measure(KnownEmbedder(), recipe_of(root, RECIPE, "sets.sounds.keys='x*'"))


def test_a_label_outside_the_classes_names_shard_and_key(root, recipe):
    (root / "val/sounds/classes.json").write_text(json.dumps([{"name": "dog"}, {"name": "cat"}, {"name": "acorn"}]))
    with pytest.raises(UserError, match=r"set sounds: .*a\.tar\.gz: 3: label 'rain' is not in val/sounds/classes"):
        measure(KnownEmbedder(), recipe)


def test_a_sample_without_label_is_named(root, recipe):
    write_shard(root / "val/sounds/a.tar.gz", {"7": (b"dog", {"captions": ["a dog"]})}, "ogg")
    with pytest.raises(UserError, match=r"set sounds: .*a\.tar\.gz: 7 has no label"):
        measure(KnownEmbedder(), recipe)


@pytest.mark.parametrize("content", ['["dog", "dog"]', "[]", "[{}]"])
def test_a_strange_class_file_is_named(root, recipe, content):
    (root / "val/sounds/classes.json").write_text(content)
    with pytest.raises(UserError, match=r"set sounds: .*classes\.json: "):
        measure(KnownEmbedder(), recipe)
