"""Retrieval: what belongs to what, and blocks of queries."""

import numpy as np
import pytest
from support.evaluation import described
from support.small_shards import write_shard

from onepeace.evaluate.protocols import protocol, retrieval


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


def test_blocks_do_not_change_the_figures(monkeypatch):
    random = np.random.default_rng(0)
    texts = random.normal(size=(10, 3))
    items = random.normal(size=(5, 3))
    item_of_text = np.arange(10) // 2

    def recalls():
        return retrieval.recalls("text to audio", texts, items, item_of_text, range(5), at=(1, 2))

    in_one = recalls()
    monkeypatch.setattr(protocol, "BLOCK", 3)

    assert recalls() == in_one
    assert 0 < in_one[0].value < 1
