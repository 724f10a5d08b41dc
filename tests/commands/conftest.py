import pytest

from onepeace.cli import main
from onepeace.index import build


@pytest.fixture
def run(capsys):
    """Runs a command in this process, which must end with that code; returns its `out` and `err`."""

    def call(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code
        return capsys.readouterr()

    return call


@pytest.fixture
def run_model(run, random_folder, loaded_once):
    """The same for commands that load a model, which is the small random one unless told another."""

    def call(*arguments, code=0, model=random_folder):
        return run(*arguments, "--model", model, "--device", "cpu", code=code)

    return call


@pytest.fixture(scope="session")
def index(tmp_path_factory, samples, random_folder):
    """An index of the samples."""
    folder = tmp_path_factory.mktemp("index") / "i"
    build(folder, [samples], str(random_folder), device="cpu", progress=False)
    return folder


@pytest.fixture
def cat(samples):
    return samples / "images" / "cat.jpg"


@pytest.fixture
def dog(samples):
    return samples / "images" / "dog.jpg"
