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


def sources(folder, *patterns, weights=(), **data):
    train = [
        {"shards": pattern, "pair": ["image", "text"], "weight": weights[i] if weights else 1.0}
        for i, pattern in enumerate(patterns or ["*.tar*"])
    ]
    return open_sources(build(DataConfig, {"train": train, "root": str(folder), **data}, "data"))


def make_lane(folder, *patterns, number=0, lanes=1, buffer=7, seed=1, run=1, cursor=None, **data):
    return Lane(sources(folder, *patterns, **data), [seed, 5], number, lanes, buffer, run, cursor)


def keys(lane, stop, start=0):
    return [lane.read(position).key for position in range(start, stop)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbered")
    write_shards(folder, [5, 4, 7, 3])
    return folder


def all_keys(sizes):
    return sorted(f"{s}-{i}" for s, size in enumerate(sizes) for i in range(size))


def keys_by_epoch(lane, epochs):
    found = {epoch: [] for epoch in range(epochs)}
    position = 0
    while (epoch := lane.window(position).cursor["epoch"]) < epochs:
        found[epoch].append(lane.read(position).key)
        position += 1
    return found


# Order


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(1, 20), st.integers(0, 9), st.integers(1, 2))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_each_sample_comes_once_an_epoch(sizes, buffer, seed, lanes):
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), sizes)
        found = {0: [], 1: []}
        for number in range(lanes):
            lane = make_lane(name, number=number, lanes=lanes, buffer=buffer, seed=seed)
            for epoch, epoch_keys in keys_by_epoch(lane, 2).items():
                found[epoch] += epoch_keys
        assert sorted(found[0]) == sorted(found[1]) == all_keys(sizes)
        assert sum(sizes) < 9 or found[0] != found[1]


def test_order_is_a_function_of_seed_and_position(folder):
    lane = make_lane(folder)
    first = keys(lane, 60)
    assert keys(make_lane(folder), 60) == first
    assert [lane.read(position).key for position in (3, 59, 0, 30)] == [first[3], first[59], first[0], first[30]]
    assert keys(make_lane(folder, seed=2), 60) != first
    assert keys(pickle.loads(pickle.dumps(lane)), 60) == first  # noqa: S301 (as a worker that is spawned)


def test_window_is_shuffled_as_a_whole_and_holds_no_more_shards_than_it_needs(tmp_path):
    write_shards(tmp_path, [20] * 4)
    lane = make_lane(tmp_path, buffer=40)
    found = keys(lane, 80)
    assert [len({key[0] for key in found[i : i + 40]}) for i in (0, 40)] == [2, 2]
    assert all(len({key[0] for key in found[i : i + 10]}) == 2 for i in range(0, 80, 10))
    assert len(lane.windows) == 2
    lane.release(79)
    assert len(lane.windows) == 1
    whole = keys(make_lane(tmp_path, buffer=1000), 20)
    assert len({key[0] for key in whole}) == 4


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.5, 1.0)])
def test_sources_are_mixed_by_weight(tmp_path, weights):
    for name in "ab":
        for s in range(4):
            write(tmp_path / name / f"{s}.tar", [f"{name}{s}-{i}" for i in range(20)])
    found = keys(make_lane(tmp_path, "a/*.tar", "b/*.tar", buffer=50, weights=weights), int(80 * sum(weights)))
    assert sum(key[0] == "a" for key in found) == 80 * weights[0]
    assert {key for key in found if key[0] == "b"} == {f"b{s}-{i}" for s in range(4) for i in range(20)}
    counts = Counter(key for key in found if key[0] == "a")
    assert set(counts.values()) == {int(weights[0]) or 1}


def test_runs_are_of_one_source_in_every_window(tmp_path):
    for name in "ab":
        for s in range(4):
            write(tmp_path / name / f"{s}.tar", [f"{name}{s}-{i}" for i in range(20)])
    found = keys(make_lane(tmp_path, "a/*.tar", "b/*.tar", buffer=40, run=5), 160)
    kinds = [{key[0] for key in found[i : i + 5]} for i in range(0, 160, 5)]
    assert all(len(kind) == 1 for kind in kinds)
    assert {next(iter(kind)) for kind in kinds} == {"a", "b"}


@pytest.mark.parametrize(("weight", "run"), [(0.01, 1), (1.0, 30)])
def test_weights_that_leave_nothing_are_an_error(folder, weight, run):
    with pytest.raises(UserError, match="weights"):
        make_lane(folder, weights=[weight], run=run).read(0)


# Going on


def test_every_position_can_be_gone_on_from_its_cursor(folder):
    lane = make_lane(folder)
    found, cursors = [], []
    for position in range(60):
        found.append(lane.read(position).key)
        cursors.append(json.loads(json.dumps(lane.window(position).cursor)))
    assert cursors[-1]["epoch"] >= 2
    for position, cursor in enumerate(cursors):
        resumed = make_lane(folder, cursor=cursor)
        assert keys(resumed, 60, start=position) == found[position:]
        assert resumed.windows[0].cursor == cursor  # nothing before was read


def test_cursor_of_other_shards_is_refused(folder, tmp_path):
    write_shards(tmp_path, [5, 4])
    with pytest.raises(UserError, match=r"4 shards.* 2 "):
        make_lane(tmp_path, cursor=make_lane(folder).window(0).cursor)


# Memory


def test_memory_does_not_grow_with_shards(tmp_path):
    write(tmp_path / "0.tar", [f"k{i}" for i in range(50)], size=2000)
    for i in range(1, 80):
        os.link(tmp_path / "0.tar", tmp_path / f"{i}.tar")

    def peak(pattern):
        lane = make_lane(tmp_path, pattern, buffer=100)
        tracemalloc.start()
        for position in range(500):
            lane.release(position)
            lane.read(position).read("image")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few = peak("[0-9].tar")
    assert peak("*.tar") < 1.3 * few
    assert len(os.listdir(Path(os.environ["ONEPEACE_CACHE"]) / "shards")) > 10  # one index each


# What breaks


def test_shards_without_a_sample_are_passed_over_but_a_source_of_them_is_an_error(tmp_path):
    write(tmp_path / "a.tar", ["x", "y"])
    write(tmp_path / "b.tar", [])
    assert set(keys(make_lane(tmp_path, buffer=1), 12)) == {"x", "y"}
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"\*\.tar\*: no usable sample"):
        make_lane(tmp_path).read(0)
