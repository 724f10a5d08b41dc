"""Small sets of files that say what they show."""

import json

import pytest
from support.evaluation import RECIPE, WORDS, recipe_of
from support.small_shards import write_shard


@pytest.fixture
def root(tmp_path):
    """Three sets: two photographs with two captions each, four drawings of three names, four labelled sounds."""
    photos = {"1": (b"dog", {"captions": ["a dog", "the dog"]}), "2": (b"cat", {"captions": ["a cat", "one cat"]})}
    write_shard(tmp_path / "val/photos/a.tar.gz", photos)
    names = {"1": "dog", "2": "dog", "3": "cat", "4": "acorn"}
    drawings = {key: (name.encode(), {"captions": [name, f"{name}: a drawing"]}) for key, name in names.items()}
    write_shard(tmp_path / "val/drawings/a.tar.gz", drawings)
    sounds = {str(i): (word.encode(), {"captions": ["x"], "label": word}) for i, word in enumerate(WORDS)}
    write_shard(tmp_path / "val/sounds/a.tar.gz", sounds, "ogg")
    (tmp_path / "val/sounds/classes.json").write_text(json.dumps(WORDS))
    return tmp_path


@pytest.fixture
def recipe(root):
    return recipe_of(root, RECIPE)


@pytest.fixture
def pictures(root):
    """Beside the four labelled sounds: two dogs of two breeds, a cat, and an acorn no sound is matched with."""
    labels = {"pug": b"dog", "terrier": b"dog", "tabby": b"cat", "acorn": b"acorn"}
    samples = {label: (media, {"captions": ["x"], "label": label}) for label, media in labels.items()}
    write_shard(root / "val/pictures/a.tar.gz", samples)
    return samples
