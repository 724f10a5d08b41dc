"""Vectors as points of a plane: the principal components, whatever the kinds and however few the files."""

import sys

import numpy as np
import pytest

from onepeace.errors import UserError
from onepeace.index.means import unit
from onepeace.index.plane import plane

ONE_KIND = np.array(["image"] * 60)


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    return unit(generator.normal(size=(60, 8)) * (5, 3, 1, 1, 1, 1, 1, 1)).astype(np.float32)


def test_points_are_the_principal_components_up_to_sign_and_scale(vectors):
    sklearn = pytest.importorskip("sklearn.decomposition")
    points = plane(vectors, ONE_KIND)
    assert points.shape == (60, 2)
    assert points.dtype == np.float32
    centred = unit(vectors - vectors.mean(axis=0))
    expected = sklearn.PCA(2).fit_transform(centred)
    inside = ((points > 0) & (points < 1)).all(axis=1)
    assert inside.sum() >= 56
    correlations = np.corrcoef(points[inside].T, expected[inside].T)[:2, 2:]
    np.testing.assert_allclose(np.abs(correlations.diagonal()), 1, atol=1e-5)
    assert (plane(vectors, ONE_KIND) == points).all()


def test_points_fill_the_frame_and_one_far_outside_comes_to_its_edge(vectors):
    points = plane(vectors, ONE_KIND)
    assert points.min() >= 0
    assert points.max() <= 1
    assert np.ptp(points, axis=0).min() > 0.95


def test_kinds_are_no_islands(vectors):
    apart = np.zeros(8, np.float32)
    apart[7] = 3
    both = unit(np.concatenate([vectors + apart, vectors - apart]))
    points = plane(both, np.repeat(["image", "audio"], 60))
    middles = points[:60].mean(axis=0) - points[60:].mean(axis=0)
    assert np.abs(middles).max() < 0.05


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_files_have_points_too(vectors, count):
    for method in ("pca", "umap"):
        points = plane(vectors[:count], ONE_KIND[:count], method)
        assert points.shape == (count, 2)
        assert np.isfinite(points).all()
    if count == 1:
        assert points.tolist() == [[0.5, 0.5]]


def test_vectors_of_one_number_have_points():
    assert plane(np.array([[1.0], [-1.0]], np.float32), ONE_KIND[:2]).shape == (2, 2)


def test_missing_umap_is_named(vectors, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r'needs umap: pip install "onepeace\[map\]"'):
        plane(vectors, ONE_KIND, "umap")


@pytest.mark.slow
def test_umap_keeps_neighbours_together():
    pytest.importorskip("umap")
    generator = np.random.default_rng(0)
    blobs = np.repeat(np.eye(3, 8), 20, axis=0) + generator.normal(0, 0.05, (60, 8))
    points = plane(unit(blobs).astype(np.float32), ONE_KIND, "umap")
    own = np.repeat(range(3), 20)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (own[distances.argmin(axis=1)] == own).all()
