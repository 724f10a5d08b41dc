"""Retrieval: what belongs to what, and blocks of queries."""

import numpy as np
import pytest
from support.evaluation import RECIPE, GivenEmbedder, KnownEmbedder, measure, recipe_of
from support.small_shards import write_shard

from onepeace.evaluate.protocols import retrieval
from onepeace.evaluate.protocols.retrieval import recalls


@pytest.mark.parametrize(("rule", "want"), [("captions", (0.5, 2)), ("names", (1.0, 1))])
def test_a_caption_belongs_to_its_own_item_but_a_name_to_every_item(root, rule, want):
    samples = {"1": (b"dog", {"captions": ["a dog"]}), "2": (b"dog cat", {"captions": ["a dog"]})}
    write_shard(root / "val/photos/a.tar.gz", samples)
    rows = measure(KnownEmbedder(), recipe_of(root, RECIPE, f"sets.photos.texts={rule}"))
    assert [(row.value, row.n) for row in rows if row[:2] == ("photos", "text to image R@1")] == [want]


def test_figures_in_blocks_as_in_one(monkeypatch):
    random = np.random.default_rng(0)
    texts, items = random.normal(size=(10, 3)), random.normal(size=(5, 3))
    given = "text to audio", texts, items, [i // 2 for i in range(10)], range(5), (1, 2)
    whole = recalls(*given)
    monkeypatch.setattr(retrieval, "BLOCK", 3)
    assert recalls(*given) == whole
    assert 0 < whole[0].value < 1


@pytest.mark.parametrize("lost", [slice(1), (slice(None), 0)])
def test_an_embedder_that_returns_another_shape_is_an_error(recipe, lost):
    vectors = np.eye(2)[lost]
    with pytest.raises(ValueError, match=r"encode_image returned \(.*\) for 2 items"):
        measure(GivenEmbedder(text=np.ones((4, 2)), image=vectors), recipe)
