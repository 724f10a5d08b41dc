"""In which order items come, and which of a batch belong together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.data.builder import multi_positive_ids, names_of
from onepeace.data.order import default_lanes, draw_order, lane_shards
from onepeace.data.sample import Sample


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 3.5)), min_size=1, max_size=3),
    st.integers(0, 99),
)
@settings(deadline=None, derandomize=True, max_examples=50)
def test_each_item_comes_as_often_as_its_weight_says(sources, seed):
    sizes, weights = zip(*sources, strict=True)
    counts = np.bincount(draw_order(sizes, weights, 1, np.random.default_rng(seed)), minlength=sum(sizes))
    for size, weight in sources:
        counts_of_source = counts[:size]
        counts = counts[size:]
        assert set(counts_of_source) <= {int(weight), int(weight) + 1}
        assert abs(counts_of_source.sum() - weight * size) < 1


def test_fraction_of_a_small_source_is_not_lost():
    sizes = [len(draw_order([3], [0.1], 1, np.random.default_rng(seed))) for seed in range(1000)]
    assert 250 < sum(sizes) < 350


@pytest.mark.parametrize(
    ("batch_size", "shards", "lanes"),
    [(32768, 1024, 64), (32768, 20, 16), (96, 1000, 32), (7, 1000, 1), (8, 1, 1), (64, 64, 64)],
)
def test_default_lanes(batch_size, shards, lanes):
    assert default_lanes(batch_size, shards) == lanes


def test_lanes_deal_out_all_shards_of_an_epoch():
    dealt = [[lane_shards([1, 5], epoch, lane, 4, 11) for lane in range(4)] for epoch in range(2)]
    for lanes in dealt:
        assert sorted(shard for lane in lanes for shard in lane) == list(range(11))
        assert [len(lane) for lane in lanes] == [3, 3, 3, 2]
    assert dealt[0] != dealt[1]


def sample(captions=(), label=None):
    return Sample("", "", {"text": list(captions)}, {} if label is None else {"label": label})


def grouped(items, drawn):
    return multi_positive_ids([names_of(item, text) for item, text in zip(items, drawn, strict=True)]).tolist()


def test_equal_labels_or_captions_are_one_group():
    items = [sample(["a cat"]), sample(["A cat", "tabby"]), sample(label="Cat"), sample(label="cat"), sample(["dog"])]
    drawn = ["a cat", "tabby", "a cat on a mat", "cat", "dog"]
    group = grouped(items, drawn)
    assert group[0] == group[1]  # a caption in common, even if another one was drawn
    assert group[2] == group[3]
    assert len(set(group)) == 3
    # One text in common joins label and captions.
    assert len(set(grouped(items, ["a cat", "tabby", "a cat", "cat", "dog"]))) == 2
