from pathlib import Path

import pytest
from support.indexes import check_same

from onepeace.index import maintain


@pytest.fixture
def index(tmp_path) -> Path:
    """Where `build` puts an index."""
    return tmp_path / "index"


@pytest.fixture
def words(tmp_path) -> Path:
    """A folder of six small texts."""
    folder = tmp_path / "words"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"words number {number}")
    return folder


@pytest.fixture
def build(random_folder, loaded_once, index):
    """Puts files into `index`, made by the small random model."""

    def run(*paths, into=index, model=random_folder, **options):
        return maintain.build(
            into,
            paths,
            str(model),
            device="cpu",
            progress=False,
            **options,
        )

    return run


@pytest.fixture
def update(index):
    def run(**options):
        return maintain.update(index, device="cpu", progress=False, **options)

    return run


@pytest.fixture
def check_as_new(build, index, tmp_path):
    """Checks that `index` says what a new index of these files says."""

    def check(*paths, **options):
        build(*paths, into=tmp_path / "fresh", **options)
        check_same(index, tmp_path / "fresh")

    return check


@pytest.fixture
def no_model(monkeypatch):
    """A call of it makes the model impossible to load."""

    def refuse(*args, **options):
        raise AssertionError("the model is loaded")

    return lambda: monkeypatch.setattr("onepeace.embed.embedder.load", refuse)
