"""Files in groups: duplicates with the best file first, clusters with the nearest words, and points of a plane."""

import os
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.indexes import fabricate, item_of, put, unit

from onepeace.errors import UserError
from onepeace.index import Index, Item, groups
from onepeace.index.groups import clusters, duplicates, plane
from onepeace.index.match import Banks

HASH = b"1" * 16


def names(members):
    """Names of files, the first one first."""
    return " ".join(os.path.basename(member.item.path) for member in members)


def names_of_duplicates(folder, **options):
    with Index.open(folder) as index:
        return sorted(names(group.members) for group in duplicates(index, **options))


@pytest.fixture(scope="module")
def files(tmp_path_factory, samples):
    """A picture and a small copy, a sound and a copy in another format, and others."""
    folder = tmp_path_factory.mktemp("files")
    for name in ("images/dog.jpg", "images/cat.jpg", "sounds/dog.ogg", "sounds/sea.ogg"):
        shutil.copy(samples / name, folder)
    shutil.copy(folder / "cat.jpg", folder / "gone.jpg")
    with Image.open(folder / "dog.jpg") as image:
        image.resize((image.width // 2, image.height // 2)).save(folder / "small.png")
    soundfile.write(folder / "long.wav", *soundfile.read(folder / "dog.ogg"))
    return folder


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    """An index of them, and of a copy of the cat in another place; one picture is gone since."""

    def member(name, vector, **fields):
        return item_of(files / name, **fields), vector

    members = [
        member("small.png", [1, 0], width=10, height=9),
        member("dog.jpg", [1, 0.1], width=20, height=9),
        member("cat.jpg", [1, 0.2], width=9, height=9, hash=HASH),
        member("gone.jpg", [1, 0.2], width=9, height=9),
        member("dog.ogg", [1, 0], duration=5.0),
        member("long.wav", [1, 0], duration=5.1),
        member("sea.ogg", [1, 0]),
        (Item("/elsewhere/cat.jpg", "image", 5, hash=HASH), [0, 1]),
    ]
    (files / "gone.jpg").unlink()
    return fabricate(tmp_path_factory.mktemp("groups") / "index", members)


def test_duplicates_have_the_best_first(folder, files, caplog):
    assert names_of_duplicates(folder) == ["cat.jpg cat.jpg", "dog.jpg small.png", "long.wav dog.ogg"]
    assert str(files / "gone.jpg") in caplog.text
    assert names_of_duplicates(folder, exact=True) == ["cat.jpg cat.jpg"]


def test_duplicates_by_surplus(folder, files):
    with Index.open(folder) as index:
        groups_of_copies = duplicates(index)
    surpluses = [group.surplus for group in groups_of_copies]
    (pictures,) = [group for group in groups_of_copies if names(group.members) == "dog.jpg small.png"]

    assert surpluses == sorted(surpluses, reverse=True)
    assert pictures.surplus == (files / "small.png").stat().st_size
    assert pictures.members[1].similarity == pytest.approx(1 / np.hypot(1, 0.1))
    assert [member.is_exact for member in pictures.members] == [True, False]


def test_duplicates_without_links_of_a_file(tmp_path):
    real = tmp_path / "z.jpg"
    real.write_bytes(b"picture")
    (tmp_path / "a.jpg").symlink_to(real)
    (tmp_path / "b.jpg").hardlink_to(real)
    shutil.copy(real, tmp_path / "zz.jpg")

    def index_of(*names):
        members = [(item_of(tmp_path / name, hash=HASH), [1, 0]) for name in names]
        return fabricate(tmp_path / f"{len(names)} {names[-1]}", members)

    assert names_of_duplicates(index_of("a.jpg", "z.jpg", "b.jpg"), exact=True) == []
    with_copy = index_of("a.jpg", "z.jpg", "zz.jpg")
    assert names_of_duplicates(with_copy, exact=True) == ["z.jpg zz.jpg"]


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """An index of pictures of a number each, which are copies of one another if they differ by at most 1."""

    def read_number(path):
        return np.array(float(path.read_text()))

    def differ_little(first, second):
        return np.abs(np.subtract(first, second)) <= 1

    monkeypatch.setitem(groups.LOOKS, "image", (read_number, differ_little))
    monkeypatch.setattr(groups, "PAIRS", 3)
    monkeypatch.setattr(groups, "COSINES", 10)
    members = []
    for position, number in enumerate((0, 1, 2, 3, 7, 9, 9, 9, 9, 9)):
        path = tmp_path / f"{number}-{position}.jpg"
        path.write_text(str(number))
        members.append((item_of(path, width=10 - number, height=1), [1, 0.01 * position]))
    return fabricate(tmp_path / "index", members)


def test_duplicates_are_no_chain_of_small_changes(numbers):
    assert names_of_duplicates(numbers) == [
        "0-0.jpg 1-1.jpg",
        "2-2.jpg 3-3.jpg",
        "9-5.jpg 9-6.jpg 9-7.jpg 9-8.jpg 9-9.jpg",
    ]


def test_duplicates_do_not_depend_on_who_was_compared_first(numbers, monkeypatch):
    monkeypatch.setattr(groups, "NEIGHBOURS", 1)

    assert "9-5.jpg 9-6.jpg 9-7.jpg 9-8.jpg 9-9.jpg" in names_of_duplicates(numbers)


WIDTH = 16
THEMES = {"dog": 12, "sea": 9, "car": 6}
AXES = {"image": 14, "audio": 15}
"""The axis of what is the same in all files of a modality."""


@pytest.fixture
def themes(tmp_path):
    """An index of three themes, with two pictures for each sound."""
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    members = []
    for axis, (theme, count) in enumerate(THEMES.items()):
        for number in range(count):
            modality = "audio" if number % 3 == 2 else "image"
            vector = generator.normal(0, 0.1, WIDTH)
            vector[axis] += 1
            vector[AXES[modality]] += 0.5
            members.append((Item(f"/p/{theme}-{number}", modality), vector))
    return fabricate(tmp_path / "index", members)


def clusters_of(folder, count=None, banks=None):
    with Index.open(folder) as index:
        put(index, "banks", Banks(banks or {}))
        return clusters(index, count)


def test_clusters_have_the_names_of_the_nearest_words(themes, monkeypatch):
    monkeypatch.setattr(groups, "texts_of", lambda bank: [*THEMES, "moon"])
    banks = {"word": np.eye(WIDTH, dtype=np.float32)[[0, 1, 2, 8]]}

    clustered = clusters_of(themes, 3, banks)

    assert [cluster.names[0] for cluster in clustered] == [*THEMES]
    for cluster in clustered:
        similarities = [member.similarity for member in cluster.members]
        assert {member.item.path[3:6] for member in cluster.members} == {cluster.names[0]}
        assert {member.item.kind for member in cluster.members} == {"image", "audio"}
        assert similarities == sorted(similarities, reverse=True)
    assert clustered == clusters_of(themes, 3, banks)


def test_clusters_without_a_number_or_words_and_of_too_few_files(themes):
    clustered = clusters_of(themes)

    assert len(clustered) == 4  # the root of 27 / 2
    assert {cluster.names for cluster in clustered} == {()}
    with pytest.raises(UserError, match="27 files"):
        clusters_of(themes, 28)


PICTURES = np.array(["image"] * 60)


@pytest.fixture
def vectors():
    vectors = np.random.default_rng(0).normal(size=(60, 8))
    vectors[:, 0] *= 5
    vectors[:, 1] *= 3
    return unit(vectors)


def test_plane_is_the_principal_components_up_to_sign_and_scale(vectors):
    sklearn = pytest.importorskip("sklearn.decomposition")
    points = plane(vectors, PICTURES)
    assert np.ptp(points, axis=0).min() > 0.95
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


@pytest.mark.parametrize("count", [1, 3])
def test_plane_of_few_files(vectors, count):
    points = plane(vectors[:count], PICTURES[:count])

    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
