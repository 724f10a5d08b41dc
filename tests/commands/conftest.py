import pytest

from onepeace.cli import main


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


@pytest.fixture
def cat(samples):
    return samples / "images" / "cat.jpg"


@pytest.fixture
def dog(samples):
    return samples / "images" / "dog.jpg"
