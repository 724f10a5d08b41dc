import pytest
from support.generative import small_generator


@pytest.fixture(scope="session")
def generator():
    """Writes from random weights; who changes it puts it back."""
    return small_generator()


@pytest.fixture(scope="session")
def images(samples):
    return [samples / "images" / name for name in ("cat.jpg", "bus.jpg", "sea.jpg", "owl.jpg", "car.jpg")]
