import pytest
from support.embedding import TEXTS
from support.images import noise_pixels
from support.random_model import save_random_model
from support.sounds import RATE, noise

import onepeace


@pytest.fixture(scope="module")
def pictures():
    return [noise_pixels(20 + 3 * i, 40) for i in range(5)]


@pytest.fixture(scope="module")
def sounds():
    """Sounds of 0.6 to 1.6 seconds, no two of the same length."""
    return [(noise(9600 + 2000 * i, seed=i), RATE) for i in range(9)]


@pytest.fixture(scope="module")
def items(pictures, sounds):
    """Items of all modalities."""
    return [*pictures, *sounds, *TEXTS]


@pytest.fixture(scope="module")
def long_sound():
    return noise(5 * RATE), RATE


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model of sounds that has a classifier and no vectors."""
    folder = tmp_path_factory.mktemp("classifier") / "model"
    heads = {"classifier": {"kind": "classifier", "on": "audio", "num_classes": 3}}
    save_random_model(folder, ("audio",), projections=(), heads=heads)
    return onepeace.load(folder, device="cpu")


@pytest.fixture
def side_by_side(monkeypatch):
    """Sets how many batches are computed at once."""
    return lambda count: monkeypatch.setattr("onepeace.embed.base.num_workers", lambda device: count)
