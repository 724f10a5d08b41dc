"""Groups of like files: found where they are clear, pictures with sounds, and named by the nearest words."""

import numpy as np
import pytest
from support.indexes import fabricate

from onepeace.errors import UserError
from onepeace.index.clusters import clusters, default_names
from onepeace.index.index import Index
from onepeace.index.means import unit
from onepeace.index.store import Item

pytest.importorskip("sklearn")

E = 16
THEMES = ("dog", "sea", "car")
WORDS = {**{name: i for i, name in enumerate(THEMES)}, "puppy": 0, "boat": 1, "moon": 8, "tree": 9}
"""Names, and the axis that each is near to."""
ASIDE = {"puppy": 10, "boat": 11}
KINDS = {"image": 14, "audio": 15}
"""The axis of what is the same in all files of a kind."""


@pytest.fixture
def folder(tmp_path):
    """Of three themes 12, 9 and 6 files, two pictures for each sound."""
    generator = np.random.default_rng(0)
    files = []
    for theme, count in zip(THEMES, (12, 9, 6), strict=True):
        for i in range(count):
            kind = "audio" if i % 3 == 2 else "image"
            vector = generator.normal(0, 0.1, E)
            vector[WORDS[theme]] += 1
            vector[KINDS[kind]] += 0.5
            files.append((Item(f"/p/{theme}-{i}", kind), vector))
    return fabricate(tmp_path / "i", files)


def encode_text(sentences):
    """A word lies at its axis, a less fitting one also elsewhere; all sentences have something in common."""
    vectors = np.zeros((len(sentences), E), np.float32)
    for vector, sentence in zip(vectors, sentences, strict=True):
        name = next(name for name in WORDS if name in sentence)
        vector[[WORDS[name], ASIDE.get(name, WORDS[name]), 12]] = 1, 0.6 if name in ASIDE else 1, 2
    return unit(vectors)


def themes(found):
    return [{member.item.path[3:6] for member in cluster.members} for cluster in found]


def test_clear_groups_are_found_and_named_by_the_right_words(folder):
    with Index.open(folder) as index:
        found = clusters(index, 3, list(WORDS), encode_text)
    assert themes(found) == [{"dog"}, {"sea"}, {"car"}]
    assert [len(cluster.members) for cluster in found] == [12, 9, 6]
    assert [cluster.names[:2] for cluster in found[:2]] == [("dog", "puppy"), ("sea", "boat")]
    assert found[2].names[0] == "car"
    for cluster in found:
        assert {member.item.modality for member in cluster.members} == {"image", "audio"}
        similarities = [member.similarity for member in cluster.members]
        assert similarities == sorted(similarities, reverse=True)
        assert 0.8 < similarities[-1] <= similarities[0] <= 1


def test_no_name_is_given_twice_while_there_are_others(folder):
    with Index.open(folder) as index:
        found = clusters(index, 9, list(WORDS), encode_text)
        assert found == clusters(index, 9, list(WORDS), encode_text)
        first = [cluster.names[0] for cluster in found]
        assert set(first) == set(WORDS)
        assert len(clusters(index, 5, ["dog", "sea"], encode_text)[0].names) == 2


def test_groups_of_sounds_are_compared_with_sentences_of_sounds(tmp_path):
    files = [(Item(f"/p/{i}", kind), np.eye(E)[i]) for i, kind in enumerate(["audio"] * 3 + ["image"] * 3)]
    asked = []

    def encode(sentences):
        asked.extend(sentences)
        return encode_text(sentences)

    with Index.open(fabricate(tmp_path / "i", files[:3])) as index:
        clusters(index, 2, ["dog", "sea"], encode)
    assert "the sound of dog" in asked
    assert "a photo of a dog" not in asked
    asked.clear()
    with Index.open(fabricate(tmp_path / "j", files[3:])) as index:
        clusters(index, 2, ["dog", "sea"], encode)
    assert "a photo of a dog" in asked
    assert "the sound of dog" not in asked


def test_without_words_there_are_groups_without_names_as_many_as_suit(folder):
    with Index.open(folder) as index:
        found = clusters(index)
    assert len(found) == 4  # the root of 27 / 2
    assert {cluster.names for cluster in found} == {()}
    assert sum(len(cluster.members) for cluster in found) == 27


def test_too_few_files_are_said(folder, tmp_path):
    with Index.open(folder) as index, pytest.raises(UserError, match="27 files make no 28 clusters"):
        clusters(index, 28)
    one = fabricate(tmp_path / "one", [(Item("/p/a", "image"), [1, 0])])
    with Index.open(one) as index, pytest.raises(UserError, match="1 file in it; clusters need at least 2"):
        clusters(index)


def test_names_that_come_with_the_package_are_words():
    names = default_names()
    assert len(names) == len(set(names)) > 400
    assert all(name == name.strip() and name for name in names)
