"""Retrieval: what belongs to what, blocks of queries, and re-ranking."""

import math

import numpy as np
import pytest
from support.evaluation import RECIPE, GivenEmbedder, KnownEmbedder, measure, recipe_of
from support.small_shards import write_shard

from onepeace.evaluate.protocols import retrieval
from onepeace.evaluate.protocols.retrieval import Retrieval, dual_softmax
from onepeace.evaluate.run import run


@pytest.mark.parametrize(("rule", "want"), [("captions", (0.5, 2)), ("names", (1.0, 1))])
def test_a_caption_belongs_to_its_own_item_but_a_name_to_every_item(root, rule, want):
    samples = {"1": (b"dog", {"captions": ["a dog"]}), "2": (b"dog cat", {"captions": ["a dog"]})}
    write_shard(root / "val/photos/a.tar.gz", samples)
    rows = measure(KnownEmbedder(), recipe_of(root, RECIPE, f"sets.photos.texts={rule}"))
    assert [(row.value, row.n) for row in rows if row[:2] == ("photos", "text to image R@1")] == [want]


def test_figures_in_blocks_as_in_one(monkeypatch):
    random = np.random.default_rng(0)
    texts, items = random.normal(size=(10, 3)), random.normal(size=(5, 3))
    protocol = Retrieval(
        modality="audio", shards="", at=(1, 2), map_at=(3,), median_rank=True, rerank=("dual_softmax",)
    )

    def figures():
        return protocol.figures("text to audio", texts, items, [i // 2 for i in range(10)], range(5))

    whole = figures()
    monkeypatch.setattr(retrieval, "BLOCK", 3)
    assert figures() == whole
    assert len(whole) == 2 * 4
    assert 0 < sum(figure.value < 1 for figure in whole)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_dual_softmax_equals_a_plain_loop(monkeypatch, block):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    random = np.random.default_rng(0)
    queries, candidates, scale = random.normal(size=(5, 3)), random.normal(size=(7, 3)), 2.5
    similar = [[sum(a * b for a, b in zip(q, c, strict=True)) for c in candidates] for q in queries]
    want = [
        [
            value * math.exp(scale * value) / sum(math.exp(scale * similar[other][j]) for other in range(5))
            for j, value in enumerate(row)
        ]
        for row in similar
    ]
    got = dual_softmax(queries, candidates, scale)(np.array(similar))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_dual_softmax_keeps_small_weights_apart():
    queries = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    candidates = np.array([[-1, 0], [-0.9, 0]], dtype=np.float32)
    got = dual_softmax(queries, candidates, 100.0)(queries @ candidates.T)
    assert got[0, 1] < got[0, 0] < 0  # weights of e^-180 and e^-200, both 0 in float32


HUB = GivenEmbedder(text=np.array([[0.9, 0.1], [0.6, 0.5]]), image=np.eye(2))
"""Text 1 lies nearer to item 0 than to its own item, as everything does; item 0 has a text that lies nearer."""


def test_reranking_adds_figures_and_changes_no_other(root):
    write_shard(root / "val/photos/a.tar.gz", {key: (b"x", {"captions": [key]}) for key in "ab"})

    def rows(*options):
        recipe = recipe_of(root, RECIPE, *(f"sets.photos.{option}" for option in options))
        return list(run(HUB, {"photos": recipe.sets["photos"]}, root))

    plain, both = rows(), rows("rerank=[dual_softmax]", "rerank_scale=10")
    assert [row.metric for row in both] == [
        "text to image R@1",
        "text to image R@1 (dual softmax)",
        "image to text R@1",
        "image to text R@1 (dual softmax)",
    ]
    assert [row[:5] for row in both[::2]] == [row[:5] for row in plain]
    assert [row[2:5] for row in both[:2]] == [(0.5, 0.5, 2), (1.0, 0.5, 2)]
    # the default scale is 100; near 0 all weights are equal, and the order is the plain one
    assert [row.value for row in rows("rerank=[dual_softmax]")[:2]] == [0.5, 1.0]
    assert [row.value for row in rows("rerank=[dual_softmax]", "rerank_scale=1e-9")[:2]] == [0.5, 0.5]


@pytest.mark.parametrize("lost", [slice(1), (slice(None), 0)])
def test_an_embedder_that_returns_another_shape_is_an_error(recipe, lost):
    vectors = np.eye(2)[lost]
    with pytest.raises(ValueError, match=r"encode_image returned \(.*\) for 2 items"):
        measure(GivenEmbedder(text=np.ones((4, 2)), image=vectors), recipe)
