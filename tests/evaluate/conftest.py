"""Small sets of files that say what they show, and what measures them.

A test module that has a RECIPE (text) measures that one; otherwise it is the one of the three sets below.
"""

import json

import pytest
from support.evaluation import RECIPE, WORDS, KnownEmbedder, measure, recipe_of, write_recipe
from support.small_shards import write_shard

import onepeace
from onepeace.cli import main


@pytest.fixture
def root(tmp_path):
    """Three sets: two photographs with two captions each, four drawings of three names, four labelled sounds."""
    photos = {
        "1": (b"dog", {"captions": ["a dog", "the dog"]}),
        "2": (b"cat", {"captions": ["a cat", "one cat"]}),
    }
    write_shard(tmp_path / "val/photos/a.tar.gz", photos)

    drawings = {}
    for number, name in enumerate(["dog", "dog", "cat", "acorn"]):
        drawings[str(number)] = (name.encode(), {"captions": [name, f"{name}: a drawing"]})
    write_shard(tmp_path / "val/drawings/a.tar.gz", drawings)

    sounds = {}
    for number, word in enumerate(WORDS):
        sounds[str(number)] = (word.encode(), {"captions": ["x"], "label": word})
    write_shard(tmp_path / "val/sounds/a.tar.gz", sounds, "ogg")
    (tmp_path / "val/sounds/classes.json").write_text(json.dumps(WORDS))
    return tmp_path


@pytest.fixture
def pictures(root):
    """Beside the four labelled sounds: two dogs of two breeds, a cat, and an acorn no sound is matched with."""
    words = {"pug": b"dog", "terrier": b"dog", "tabby": b"cat", "acorn": b"acorn"}
    samples = {label: (word, {"captions": ["x"], "label": label}) for label, word in words.items()}
    write_shard(root / "val/pictures/a.tar.gz", samples)


@pytest.fixture
def recipe_text(request):
    return getattr(request.module, "RECIPE", RECIPE)


@pytest.fixture
def measured(root, recipe_text):
    """Measures an embedder, by default one that is always right, on the recipe; returns the rows."""

    def rows(*overrides, embedder=None):
        return measure(embedder or KnownEmbedder(), recipe_of(root, recipe_text, *overrides))

    return rows


@pytest.fixture
def evaluate(root, recipe_text, monkeypatch, capsys):
    """Runs the command on the recipe, with an embedder for its model: (exit code, stdout, stderr)."""

    def run(*arguments, embedder=None):
        monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: embedder or KnownEmbedder())
        recipe = write_recipe(root, recipe_text)
        code = main(["evaluate", str(recipe), *map(str, arguments), "--data", str(root)])
        return code, *capsys.readouterr()

    return run
