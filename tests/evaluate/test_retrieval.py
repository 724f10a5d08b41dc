"""Retrieval: what belongs to what, and blocks of queries."""

import numpy as np
import pytest
from support.evaluation import KnownEmbedder, described
from support.small_shards import write_shard, write_tar

from onepeace.evaluate import ranking
from onepeace.evaluate.protocols.retrieval import Retrieval
from onepeace.evaluate.ranking import Ranking


@pytest.mark.parametrize(
    ("texts", "value", "n"),
    [
        ("captions", 0.5, 2),
        ("names", 1.0, 1),
    ],
)
def test_captions_belong_to_one_item_and_names_to_all(root, measured, texts, value, n):
    samples = {
        "1": described(b"dog", "a dog"),
        "2": described(b"dog cat", "a dog"),
    }
    write_shard(root / "val/photos/a.tar.gz", samples)

    text_to_image, *_ = measured(f"sets.photos.texts={texts}")

    assert text_to_image[:2] == ("photos", "text to image R@1")
    assert text_to_image.value == value
    assert text_to_image.n == n


def test_equal_captions_are_one_query_that_all_their_items_have(root):
    """Items are grouped in pairs, and all groups share a caption with another."""
    samples = {}
    for number, captions in enumerate(["dog", "dog rain", "cat", "dog", "acorn", "cat"]):
        targets = {"group": number // 2, "file": f"{number}.png"}
        samples[str(number)] = described(captions.split()[0].encode(), *captions.split(), targets=targets)
    write_shard(root / "val/photos/a.tar.gz", samples)

    texts, images = Retrieval(modality="image", shards="val/photos/*", texts="distinct").run(KnownEmbedder(), root)

    assert texts.names == ["dog", "rain", "cat", "acorn"]
    assert texts.candidates == 6
    assert texts.right == [3, 1, 2, 1]
    assert texts.ranks == [1, 6, 1, 1]  # nothing has the vector of rain
    assert len(set(texts.groups)) == 1
    assert images.names == [f"{number}.png" for number in range(6)]
    assert images.candidates == 4
    assert images.right == [1, 2, 1, 1, 1, 1]
    assert images.ranks == [1] * 6
    assert images.groups == [0, 0, 1, 1, 2, 2]


def test_items_of_two_modalities_find_one_another(root):
    """Equal sounds are one query, named by the file of its first picture."""
    members = {}
    for number, (picture, sound) in enumerate([("a dog", "dog"), ("the dog", "dog"), ("a cat", "rain")]):
        members |= {f"{number}.png": picture.encode(), f"{number}.ogg": sound.encode()}
    write_tar(root / "val/pairs.tar", members)

    protocol = Retrieval(modality="image", other="audio", shards="val/pairs.tar", texts="distinct")
    sounds, images = protocol.run(KnownEmbedder(), root)

    assert [side.modality for side in protocol.sides] == ["image", "audio"]
    assert (sounds.metric_at(1), images.metric_at(1)) == ("audio to image R@1", "image to audio R@1")
    assert sounds.names == ["0", "2"]
    assert sounds.right == [2, 1]
    assert images.ranks == [1, 1, 2]


def test_blocks_do_not_change_the_ranks(monkeypatch):
    random = np.random.default_rng(0)
    texts = random.normal(size=(10, 3))
    items = random.normal(size=(5, 3))
    facts = {"metric": "R@{k}", "at": (1, 2), "groups": range(10), "names": []}

    def ranks():
        return ranking.search(texts, items, [[text // 2] for text in range(10)], **facts).ranks

    in_one = ranks()
    monkeypatch.setattr(ranking, "BLOCK", 3)

    assert ranks() == in_one
    assert len(set(in_one)) > 2


@pytest.mark.parametrize(
    ("at", "candidates", "ks"),
    [
        ((1, 5, 10), 11, [1, 5, 10]),
        ((1, 5, 10), 10, [1, 5]),
        ((1, 5), 5, [1]),
        ((10,), 4, [10]),
    ],
)
def test_figures_that_are_always_100_percent_are_left_out(at, candidates, ks):
    result = Ranking(metric="top-{k}", at=at, candidates=candidates, ranks=[1], right=[1], groups=[0], names=["a"])
    assert [figure.metric for figure in result.figures()] == [f"top-{k}" for k in ks]
