import numpy as np
import pytest
from support.embedding import RATE


@pytest.fixture(scope="module")
def pictures():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (20 + 3 * i, 40, 3), dtype=np.uint8) for i in range(5)]


@pytest.fixture(scope="module")
def sounds():
    """Sounds of 0.6 to 1.8 seconds, no two of the same length."""
    generator = np.random.default_rng(0)
    return [(generator.normal(0, 0.1, 9600 + 2000 * i).astype(np.float32), RATE) for i in range(9)]


@pytest.fixture(scope="module")
def long_sound():
    return np.random.default_rng(1).normal(0, 0.1, 5 * RATE).astype(np.float32), RATE


@pytest.fixture
def side_by_side(monkeypatch):
    """Sets how many batches are computed at once."""
    return lambda count: monkeypatch.setattr("onepeace.embed.embedder.num_workers", lambda device: count)
