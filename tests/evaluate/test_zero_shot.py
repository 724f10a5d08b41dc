"""Zero-shot classification: which classes, which templates, and samples that do not fit."""

import json

import pytest
from support.evaluation import WORDS, KnownEmbedder, described
from support.small_shards import write_shard

from onepeace.embed.classify import TEMPLATES, fill
from onepeace.errors import UserError

SOUNDS_ALONE = ("sets.photos=null", "sets.drawings=null")


@pytest.mark.parametrize(
    ("modality", "suffix"),
    [
        ("image", "png"),
        ("audio", "ogg"),
    ],
)
def test_templates_default_to_those_of_the_modality(root, measured, modality, suffix):
    write_shard(root / "val/sounds/a.tar.gz", {"1": described(b"dog", label="dog")}, suffix)
    embedder = KnownEmbedder()

    measured(*SOUNDS_ALONE, f"sets.sounds.modality={modality}", embedder=embedder)

    assert embedder.texts == [fill(template, word) for word in WORDS for template in TEMPLATES[modality]]


def test_label_outside_the_classes_names_shard_and_key(root, measured):
    classes = [{"name": "dog"}, {"name": "cat"}, {"name": "acorn"}]
    (root / "val/sounds/classes.json").write_text(json.dumps(classes))

    with pytest.raises(UserError, match=r"set sounds: .*a\.tar\.gz: 3: .*'rain'.*val/sounds/classes"):
        measured()


def test_sample_without_label_is_named(root, measured):
    write_shard(root / "val/sounds/a.tar.gz", {"7": described(b"dog", "a dog")}, "ogg")

    with pytest.raises(UserError, match=r"set sounds: .*a\.tar\.gz: 7 .*label"):
        measured()


@pytest.mark.parametrize("content", ['["dog", "dog"]', "[]", "[{}]"])
def test_invalid_class_file_is_named(root, measured, content):
    (root / "val/sounds/classes.json").write_text(content)

    with pytest.raises(UserError, match=r"set sounds: .*classes\.json: "):
        measured()
