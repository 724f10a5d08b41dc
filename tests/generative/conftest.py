import pytest
from support.evaluation import KnownEmbedder, measure, recipe_of
from support.generative import save_trainable_ofa, small_generator
from support.small_shards import write_shards
from support.training import make_recipe

from onepeace.cli import main


@pytest.fixture(scope="session")
def generator():
    """Writes from random weights; who changes it puts it back."""
    return small_generator()


@pytest.fixture(scope="session")
def images(samples):
    return [samples / "images" / name for name in ("cat.jpg", "bus.jpg", "sea.jpg", "owl.jpg", "car.jpg")]


@pytest.fixture(scope="session")
def ofa_folder(tmp_path_factory):
    """A small model that writes, with fresh weights."""
    return save_trainable_ofa(tmp_path_factory.mktemp("models") / "ofa")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A folder with squares.tar and tones.tar."""
    return write_shards(tmp_path_factory.mktemp("shards"))


@pytest.fixture
def small_recipe(root, tmp_path):
    """Makes recipes as support/training.py; their runs are in the test's folder, or in one of a name in it."""

    def make(name="", **fields):
        return make_recipe(root, tmp_path / name, **fields)

    return make


@pytest.fixture
def measured(root, request):
    """Measures an embedder, by default one that is always right, on the recipe of the module; returns the rows."""

    def rows(*overrides, embedder=None):
        return measure(embedder or KnownEmbedder(), recipe_of(root, request.module.RECIPE, *overrides))

    return rows


@pytest.fixture
def run_model(capsys):
    """Runs a command with a model in this process, which must end with that code; returns its `out` and `err`."""

    def call(*arguments, model, code=0):
        assert main([str(argument) for argument in (*arguments, "--model", model, "--device", "cpu")]) == code
        return capsys.readouterr()

    return call
