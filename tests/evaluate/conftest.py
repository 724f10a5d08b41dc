"""Small sets of files that say what they show, and what measures them.

A test module that has a RECIPE (text) measures that one; otherwise it is the one of the three sets below.
"""

import json

import pytest
from support.evaluation import (
    RECIPE,
    WORDS,
    KnownEmbedder,
    described,
    measure,
    recipe_of,
    write_recipe,
)
from support.small_shards import write_shard

import onepeace
from onepeace.cli import main


@pytest.fixture
def root(tmp_path):
    """Three sets: two photographs with two captions each, four drawings of three names, four labelled sounds."""
    photos = {
        "1": described(b"dog", "a dog", "the dog"),
        "2": described(b"cat", "a cat", "one cat"),
    }
    write_shard(tmp_path / "val/photos/a.tar.gz", photos)

    drawings = {
        "1": described(b"dog", "dog", "a drawing of a dog"),
        "2": described(b"dog", "dog", "another dog"),
        "3": described(b"cat", "cat"),
        "4": described(b"acorn", "acorn"),
    }
    write_shard(tmp_path / "val/drawings/a.tar.gz", drawings)

    sounds = {}
    for number, word in enumerate(WORDS):
        sounds[str(number)] = described(word.encode(), label=word)
    write_shard(tmp_path / "val/sounds/a.tar.gz", sounds, "ogg")
    (tmp_path / "val/sounds/classes.json").write_text(json.dumps(WORDS))
    return tmp_path


@pytest.fixture
def pictures(root):
    """Beside the four labelled sounds: two dogs of two breeds, a cat, and an acorn no sound is matched with."""
    samples = {
        "1": described(b"dog", label="pug"),
        "2": described(b"dog", label="terrier"),
        "3": described(b"cat", label="tabby"),
        "4": described(b"acorn", label="acorn"),
    }
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
        loaded = embedder or KnownEmbedder()

        def load(name, device=None, dtype="auto"):
            loaded.dtype = f"torch.{dtype}"
            return loaded

        monkeypatch.setitem(vars(onepeace), "load", load)
        recipe = write_recipe(root, recipe_text)
        command = ["evaluate", recipe, *arguments, "--data", root]
        code = main(list(map(str, command)))
        return code, *capsys.readouterr()

    return run
