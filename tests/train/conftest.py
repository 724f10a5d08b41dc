import pytest
from support.small_shards import write_shards
from support.training import make_recipe


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
