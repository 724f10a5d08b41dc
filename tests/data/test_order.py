"""In which order items come, and which of a batch belong together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.data.builder import multi_positive_ids, names_of
from onepeace.data.order import default_lanes, draw_order, lane_shards
from onepeace.data.sample import Sample

SIZES = st.integers(1, 9)
WEIGHTS = st.floats(0.1, 3.5)


@given(sources=st.lists(st.tuples(SIZES, WEIGHTS), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_each_item_comes_as_often_as_its_weight_says(sources, seed):
    sizes = [size for size, _ in sources]
    weights = [weight for _, weight in sources]
    order = draw_order(sizes, weights, run=1, rng=np.random.default_rng(seed))
    counts = np.bincount(order, minlength=sum(sizes))
    for size, weight in sources:
        counts_of_source = counts[:size]
        counts = counts[size:]
        assert set(counts_of_source) <= {int(weight), int(weight) + 1}
        assert abs(counts_of_source.sum() - weight * size) < 1


def test_fraction_of_a_small_source_is_not_lost():
    drawn = 0
    for seed in range(1000):
        drawn += len(draw_order([3], [0.1], run=1, rng=np.random.default_rng(seed)))
    assert 250 < drawn < 350


@pytest.mark.parametrize(
    ("batch_size", "shards", "lanes"),
    [
        (32768, 1024, 64),
        (32768, 20, 16),
        (96, 1000, 32),
        (7, 1000, 1),
        (8, 1, 1),
        (64, 64, 64),
    ],
)
def test_default_lanes(batch_size, shards, lanes):
    assert default_lanes(batch_size, shards) == lanes


def test_lanes_deal_out_all_shards_of_an_epoch():
    dealt_by_epoch = []
    for epoch in range(2):
        lanes = [lane_shards([1, 5], epoch, lane, lanes=4, shards=11) for lane in range(4)]
        dealt = [shard for lane in lanes for shard in lane]
        assert sorted(dealt) == list(range(11))
        assert [len(lane) for lane in lanes] == [3, 3, 3, 2]
        dealt_by_epoch.append(lanes)
    assert dealt_by_epoch[0] != dealt_by_epoch[1]


def captioned(*captions):
    return Sample(key="", source="", inputs={"text": list(captions)}, targets={})


def labelled(label):
    return Sample(key="", source="", inputs={"text": []}, targets={"label": label})


def groups(samples, captions):
    names = [names_of(sample, caption) for sample, caption in zip(samples, captions, strict=True)]
    return multi_positive_ids(names).tolist()


def test_equal_labels_or_captions_are_one_group():
    samples = [captioned("a cat"), captioned("A cat", "tabby"), labelled("Cat"), labelled("cat"), captioned("dog")]
    ids = groups(samples, ["a cat", "tabby", "a cat on a mat", "cat", "dog"])
    assert ids[0] == ids[1]  # a caption in common, even if another one was drawn
    assert ids[2] == ids[3]
    assert len(set(ids)) == 3
    # One text in common joins label and captions.
    ids = groups(samples, ["a cat", "tabby", "a cat", "cat", "dog"])
    assert len(set(ids)) == 2
