"""Points of a plane for the files of an index."""

import numpy as np
import pytest
from support.indexes import unit

from onepeace.index.groups import plane

PICTURES = np.array(["image"] * 60)


@pytest.fixture
def vectors():
    vectors = np.random.default_rng(0).normal(size=(60, 8))
    vectors[:, 0] *= 5
    vectors[:, 1] *= 3
    return unit(vectors)


def test_plane_fills_a_square(vectors):
    points = plane(vectors, PICTURES)

    assert points.shape == (60, 2)
    assert points.dtype == np.float32
    assert points.min() >= 0
    assert points.max() <= 1
    assert np.ptp(points, axis=0).min() > 0.95
    assert (plane(vectors, PICTURES) == points).all()


def test_plane_is_the_principal_components_up_to_sign_and_scale(vectors):
    sklearn = pytest.importorskip("sklearn.decomposition")
    points = plane(vectors, PICTURES)
    is_inside = ((points > 0) & (points < 1)).all(axis=1)

    expected = sklearn.PCA(2).fit_transform(unit(vectors - vectors.mean(axis=0)))

    correlations = np.corrcoef(points[is_inside].T, expected[is_inside].T)[:2, 2:]
    assert is_inside.sum() >= 56
    np.testing.assert_allclose(np.abs(correlations.diagonal()), 1, atol=1e-5)


def test_plane_has_no_islands_of_modalities(vectors):
    gap = np.zeros(8, np.float32)
    gap[7] = 3
    both = unit(np.concatenate([vectors + gap, vectors - gap]))

    points = plane(both, np.repeat(["image", "audio"], 60))

    middle_of_pictures = points[:60].mean(axis=0)
    middle_of_sounds = points[60:].mean(axis=0)
    assert np.abs(middle_of_pictures - middle_of_sounds).max() < 0.05


@pytest.mark.parametrize("count", [1, 2, 3])
def test_plane_of_few_files(vectors, count):
    points = plane(vectors[:count], PICTURES[:count])

    assert points.shape == (count, 2)
    assert np.isfinite(points).all()


def test_plane_of_vectors_of_one_number():
    vectors = np.array([[1.0], [-1.0]], np.float32)

    assert plane(vectors, PICTURES[:2]).shape == (2, 2)
