import pytest
from support.small_shards import write_shards


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A folder with squares.tar and tones.tar."""
    return write_shards(tmp_path_factory.mktemp("shards"))
