"""A lane: which sample comes at which position, whatever the shards and restarts."""

import json
import os
import pickle
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.numbered import write, write_shards
from support.small_shards import write_tar

from onepeace.config import build
from onepeace.data.config import DataConfig
from onepeace.data.reader import Lane
from onepeace.data.source import open_sources
from onepeace.errors import UserError


def make_lane(folder, patterns=("*.tar*",), weights=(1.0, 1.0), seed=1, **options):
    """A lane of one source for each pattern."""
    train = []
    for pattern, weight in zip(patterns, weights, strict=False):
        train.append({"shards": pattern, "pair": ["image", "text"], "weight": weight})
    data = build(DataConfig, {"train": train, "root": str(folder)}, "data")
    return Lane(open_sources(data), [seed, 5], **{"buffer": 7, **options})


def read(lane, position):
    candidates, number = lane.at(position)
    return candidates.read(number)


def keys(lane, stop, start=0):
    return [read(lane, position).key for position in range(start, stop)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four shards with 5, 4, 7 and 3 samples."""
    folder = tmp_path_factory.mktemp("numbered")
    write_shards(folder, [5, 4, 7, 3])
    return folder


def first_letters(keys_of_run):
    return {key[0] for key in keys_of_run}


def runs_of(length, keys_of_lane):
    """Consecutive keys, so many at a time."""
    return [keys_of_lane[start : start + length] for start in range(0, len(keys_of_lane), length)]


# Order


def keys_by_epoch(lane, epochs):
    keys_of_epochs = [[] for _ in range(epochs)]
    position = 0
    epoch = 0
    while epoch < epochs:
        keys_of_epochs[epoch].append(read(lane, position).key)
        position += 1
        epoch = lane.window(position).cursor["epoch"]
    return keys_of_epochs


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    buffer=st.integers(1, 20),
    seed=st.integers(0, 9),
    lanes=st.integers(1, 2),
)
@settings(deadline=None, derandomize=True, max_examples=20)
def test_samples_come_once_an_epoch(sizes, buffer, seed, lanes):
    expected = [f"{shard}-{i}" for shard, size in enumerate(sizes) for i in range(size)]
    first_epoch = []
    second_epoch = []
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), sizes)
        for number in range(lanes):
            lane = make_lane(name, seed=seed, lane=number, lanes=lanes, buffer=buffer)
            first_of_lane, second_of_lane = keys_by_epoch(lane, epochs=2)
            first_epoch += first_of_lane
            second_epoch += second_of_lane
    assert sorted(first_epoch) == sorted(second_epoch) == sorted(expected)
    if len(expected) >= 9:
        assert first_epoch != second_epoch


def test_order_is_a_function_of_seed_and_position(folder):
    lane = make_lane(folder)
    expected = keys(lane, 60)
    assert keys(make_lane(folder), 60) == expected
    for position in (3, 59, 0, 30):
        assert read(lane, position).key == expected[position]
    assert keys(make_lane(folder, seed=2), 60) != expected
    sent = pickle.loads(pickle.dumps(lane))  # noqa: S301 (as to a worker that is spawned)
    assert keys(sent, 60) == expected


def test_window_is_shuffled_as_a_whole(tmp_path):
    write_shards(tmp_path, [20] * 4)
    keys_of_lane = keys(make_lane(tmp_path, buffer=40), 80)
    for length in (10, 40):
        for run in runs_of(length, keys_of_lane):
            assert len(first_letters(run)) == 2


@pytest.mark.parametrize(("weight", "run"), [(0.01, 1), (1.0, 30)])
def test_weights_that_leave_nothing_are_an_error(folder, weight, run):
    with pytest.raises(UserError, match="weights"):
        make_lane(folder, weights=[weight], run=run).window(0)


# Going on


def test_cursor_of_every_position_resumes_there(folder):
    lane = make_lane(folder)
    expected = []
    cursors = []
    for position in range(60):
        expected.append(read(lane, position).key)
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
        read(lane, position).read("image")
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
    indexes = Path(os.environ["ONEPEACE_CACHE"], "shards").glob("*.index")
    assert len(list(indexes)) > 10  # it has not read the same ones


# What breaks


def test_shards_without_a_usable_sample_are_passed_over(tmp_path):
    write(tmp_path / "a.tar", ["x", "y"])
    write_tar(tmp_path / "b.tar", {"sound.ogg": b"of another modality"})
    write(tmp_path / "c.tar", [])
    lane = make_lane(tmp_path, buffer=1)
    assert set(keys(lane, 12)) == {"x", "y"}
    lost = lane.sources[0].lost[0]
    assert (lost.shard, lost.epoch) == (2, 0)
    assert "c.tar: the tar has no sample" in lost.reason


def test_source_without_a_sample_is_an_error(tmp_path):
    write(tmp_path / "b.tar", [])
    with pytest.raises(UserError, match=r"\*\.tar\*: no usable sample"):
        make_lane(tmp_path).window(0)
