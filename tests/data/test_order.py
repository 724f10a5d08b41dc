"""In which order items come, and which of a batch belong together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onepeace.data.builder import multi_positive_ids, names_of
from onepeace.data.order import default_lanes, draw_order, fetches, lane_shards
from onepeace.data.sample import Sample

SIZES = st.integers(1, 9)
WEIGHTS = st.floats(0.1, 3.5)


@given(sources=st.lists(st.tuples(SIZES, WEIGHTS), min_size=1, max_size=3), seed=st.integers(0, 99))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_items_come_as_often_as_their_weight_says(sources, seed):
    sizes = [size for size, _ in sources]
    weights = [weight for _, weight in sources]
    order = draw_order(sizes, weights, run=1, rng=np.random.default_rng(seed))
    counts = np.bincount(order, minlength=sum(sizes))
    for size, weight in sources:
        counts_of_source = counts[:size]
        counts = counts[size:]
        assert set(counts_of_source) <= {int(weight), int(weight) + 1}
        assert abs(counts_of_source.sum() - weight * size) < 1


@pytest.mark.parametrize(
    ("batch_size", "shards", "machines", "lanes", "times"),
    [
        (32768, 1024, 1, 64, 1.0),
        (3072, 1024, 12, 48, 1.0),  # 64 lanes: 1.125
        (36, 1024, 12, 36, 1.0),  # without many factors of two: 4 lanes, 3.0
        (8, 1, 8, 1, 8.0),
        (640, 20, 32, 16, 2.0),  # 20 lanes: 2.4
    ],
)
def test_default_lanes_are_those_that_the_fewest_machines_share(batch_size, shards, machines, lanes, times):
    assert default_lanes(batch_size, shards, machines) == lanes
    assert fetches(lanes, machines) == times


@pytest.mark.parametrize(("lanes", "machines"), [(8, 3), (64, 12), (20, 32), (1, 5)])
def test_shard_is_fetched_by_the_machines_that_share_its_lane(lanes, machines):
    rows = np.arange(lanes * machines)
    shared = set(zip(rows // machines, rows // lanes, strict=True))  # lane and machine of each row
    assert fetches(lanes, machines) == len(shared) / lanes


def lanes_of_epoch(epoch):
    return [lane_shards([1, 5], epoch, lane, lanes=4, shards=11) for lane in range(4)]


def test_lanes_deal_out_all_shards_of_an_epoch():
    lanes = lanes_of_epoch(0)
    assert [len(shards) for shards in lanes] == [3, 3, 3, 2]
    assert sorted(np.concatenate(lanes)) == list(range(11))
    assert lanes_of_epoch(1) != lanes


SAMPLES = [
    Sample(key="", source="", inputs={"text": ["a cat"]}, targets={}),
    Sample(key="", source="", inputs={"text": ["A cat", "tabby"]}, targets={}),
    Sample(key="", source="", inputs={"text": []}, targets={"label": "Cat"}),
    Sample(key="", source="", inputs={"text": []}, targets={"label": "cat"}),
    Sample(key="", source="", inputs={"text": ["dog"]}, targets={}),
]


def groups_with(*captions):
    """Groups of the samples with these captions drawn."""
    return multi_positive_ids(list(map(names_of, SAMPLES, captions))).tolist()


def test_groups_have_a_caption_or_label_in_common():
    """Even if another caption was drawn."""
    groups = groups_with("a cat", "tabby", "a cat on a mat", "cat", "dog")
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert len(set(groups)) == 3


def test_groups_of_caption_and_label_are_joined_by_one_text():
    groups = groups_with("a cat", "tabby", "a cat", "cat", "dog")
    assert len(set(groups[:4])) == 1
    assert groups[4] != groups[0]
