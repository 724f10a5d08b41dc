"""A lane: which sample comes at which position, whatever the shards and restarts."""

import json
import os
import pickle
import tempfile
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.numbered import write, write_shards

from onepeace.config import build
from onepeace.data.config import DataConfig
from onepeace.data.lane import Lane
from onepeace.data.reader import open_sources
from onepeace.errors import UserError


def make_lane(folder, patterns=("*.tar*",), weights=(1.0, 1.0), seed=1, **options):
    """A lane of one source for each pattern."""
    train = []
    for pattern, weight in zip(patterns, weights, strict=False):
        train.append({"shards": pattern, "pair": ["image", "text"], "weight": weight})
    data = build(DataConfig, {"train": train, "root": str(folder)}, "data")
    return Lane(open_sources(data), [seed, 5], **{"buffer": 7, **options})


def keys(lane, stop, start=0):
    return [lane.read(position).key for position in range(start, stop)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four shards with 5, 4, 7 and 3 samples."""
    folder = tmp_path_factory.mktemp("numbered")
    write_shards(folder, [5, 4, 7, 3])
    return folder


@pytest.fixture
def two_sources(tmp_path):
    """Four shards of 20 samples in each of the folders a and b."""
    for name in "ab":
        for shard in range(4):
            write(tmp_path / name / f"{shard}.tar", [f"{name}{shard}-{i}" for i in range(20)])
    return tmp_path


def first_letters(keys_of_run):
    return {key[0] for key in keys_of_run}


# Order


def keys_by_epoch(lane, epochs):
    found = {epoch: [] for epoch in range(epochs)}
    position = 0
    epoch = 0
    while epoch < epochs:
        found[epoch].append(lane.read(position).key)
        position += 1
        epoch = lane.window(position).cursor["epoch"]
    return found


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    buffer=st.integers(1, 20),
    seed=st.integers(0, 9),
    lanes=st.integers(1, 2),
)
@settings(deadline=None, derandomize=True, max_examples=20)
def test_each_sample_comes_once_an_epoch(sizes, buffer, seed, lanes):
    expected = [f"{shard}-{i}" for shard, size in enumerate(sizes) for i in range(size)]
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), sizes)
        first, second = [], []
        for number in range(lanes):
            lane = make_lane(name, seed=seed, lane=number, lanes=lanes, buffer=buffer)
            by_epoch = keys_by_epoch(lane, epochs=2)
            first += by_epoch[0]
            second += by_epoch[1]
        assert sorted(first) == sorted(second) == sorted(expected)
        assert len(expected) < 9 or first != second


def test_order_is_a_function_of_seed_and_position(folder):
    lane = make_lane(folder)
    expected = keys(lane, 60)
    assert keys(make_lane(folder), 60) == expected
    for position in (3, 59, 0, 30):
        assert lane.read(position).key == expected[position]
    assert keys(make_lane(folder, seed=2), 60) != expected
    sent = pickle.loads(pickle.dumps(lane))  # noqa: S301 (as to a worker that is spawned)
    assert keys(sent, 60) == expected


def test_window_is_shuffled_as_a_whole_and_holds_no_more_shards_than_it_needs(tmp_path):
    write_shards(tmp_path, [20] * 4)
    lane = make_lane(tmp_path, buffer=40)
    found = keys(lane, 80)
    for start in range(0, 80, 10):
        assert len(first_letters(found[start : start + 10])) == 2
    assert len(first_letters(found[:40])) == len(first_letters(found[40:])) == 2
    assert len(lane.windows) == 2
    lane.release(79)
    assert len(lane.windows) == 1
    whole = keys(make_lane(tmp_path, buffer=1000), 20)
    assert len(first_letters(whole)) == 4


@pytest.mark.parametrize("weight", [3.0, 0.5])
def test_sources_are_mixed_by_weight(two_sources, weight):
    lane = make_lane(two_sources, ["a/*.tar", "b/*.tar"], [weight, 1.0], buffer=50)
    counts = Counter(keys(lane, int(80 * (weight + 1.0))))
    counts_of_a = [count for key, count in counts.items() if key[0] == "a"]
    counts_of_b = [count for key, count in counts.items() if key[0] == "b"]
    assert sum(counts_of_a) == 80 * weight
    assert set(counts_of_a) == {max(int(weight), 1)}
    assert counts_of_b == [1] * 80


def test_runs_are_of_one_source_in_every_window(two_sources):
    found = keys(make_lane(two_sources, ["a/*.tar", "b/*.tar"], buffer=40, run=5), 160)
    sources_of_runs = [first_letters(found[start : start + 5]) for start in range(0, 160, 5)]
    assert all(len(sources) == 1 for sources in sources_of_runs)
    assert set.union(*sources_of_runs) == {"a", "b"}


@pytest.mark.parametrize(("weight", "run"), [(0.01, 1), (1.0, 30)])
def test_weights_that_leave_nothing_are_an_error(folder, weight, run):
    with pytest.raises(UserError, match="weights"):
        make_lane(folder, weights=[weight], run=run).read(0)


# Going on


def test_every_position_can_be_gone_on_from_its_cursor(folder):
    lane = make_lane(folder)
    expected = []
    cursors = []
    for position in range(60):
        expected.append(lane.read(position).key)
        cursor = lane.window(position).cursor
        cursors.append(json.loads(json.dumps(cursor)))
    assert cursors[-1]["epoch"] >= 2
    for position, cursor in enumerate(cursors):
        resumed = make_lane(folder, cursor=cursor)
        assert keys(resumed, 60, start=position) == expected[position:]
        assert resumed.windows[0].cursor == cursor  # nothing before was read


def test_cursor_of_other_shards_is_refused(folder, tmp_path):
    write_shards(tmp_path, [5, 4])
    cursor = make_lane(folder).window(0).cursor
    with pytest.raises(UserError, match=r"4 shards.* 2 "):
        make_lane(tmp_path, cursor=cursor)


# Memory


def peak_memory_of_reading(lane):
    tracemalloc.start()
    for position in range(500):
        lane.release(position)
        lane.read(position).read("image")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_shards(tmp_path):
    write(tmp_path / "0.tar", [f"k{i}" for i in range(50)], size=2000)
    for i in range(1, 80):
        os.link(tmp_path / "0.tar", tmp_path / f"{i}.tar")
    few = peak_memory_of_reading(make_lane(tmp_path, ["[0-9].tar"], buffer=100))
    many = peak_memory_of_reading(make_lane(tmp_path, ["*.tar"], buffer=100))
    assert many < 1.3 * few
    indexes = Path(os.environ["ONEPEACE_CACHE"], "shards").glob("*.safetensors")
    assert len(list(indexes)) > 10  # it has not read the same ones


# What breaks


def test_shards_without_a_sample_are_passed_over_but_a_source_of_them_is_an_error(tmp_path):
    write(tmp_path / "a.tar", ["x", "y"])
    write(tmp_path / "b.tar", [])
    found = keys(make_lane(tmp_path, buffer=1), 12)
    assert set(found) == {"x", "y"}
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"\*\.tar\*: no usable sample"):
        make_lane(tmp_path).read(0)
