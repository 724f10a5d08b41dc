import pytest

from onepeace.index import maintain


@pytest.fixture
def build(random_folder):
    """Puts files into an index made by the small random model."""

    def run(folder, *paths, model=random_folder, **options):
        return maintain.build(folder, paths, str(model), device="cpu", progress=False, **options)

    return run


@pytest.fixture
def update():
    def run(folder, **options):
        return maintain.update(folder, device="cpu", progress=False, **options)

    return run


@pytest.fixture
def no_model(monkeypatch):
    """A call of it makes the model impossible to load."""

    def refuse(*args, **options):
        raise AssertionError("the model is loaded")

    return lambda: monkeypatch.setattr("onepeace.embed.embedder.load", refuse)
