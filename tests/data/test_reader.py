"""The reader: which sample comes at which position, whatever the shards, workers, processes and restarts."""

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
from support.batches import IMAGES, SOUNDS, batches, make_steps, recipe, same
from support.numbered import keys, write, write_shards

from onepeace.config import build
from onepeace.data.config import DataConfig
from onepeace.data.reader import Reader, open_sources
from onepeace.data.steps import loader
from onepeace.errors import UserError


def sources(folder, *patterns, weights=(), **data):
    train = [
        {"shards": pattern, "pair": ["image", "text"], "weight": weights[i] if weights else 1.0}
        for i, pattern in enumerate(patterns or ["*.tar*"])
    ]
    return open_sources(build(DataConfig, {"train": train, "root": str(folder), **data}, "data"))


def reader(folder, *patterns, buffer=7, seed=1, run=1, cursor=None, **data):
    return Reader(sources(folder, *patterns, **data), [seed, 5], buffer, run, cursor)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbered")
    write_shards(folder, [5, 4, 7, 3])
    return folder


def all_keys(sizes):
    return sorted(f"{s}-{i}" for s, size in enumerate(sizes) for i in range(size))


# Order


@given(st.lists(st.integers(1, 9), min_size=2, max_size=5), st.integers(1, 20), st.integers(0, 9))
@settings(deadline=None, derandomize=True, max_examples=20)
def test_each_sample_comes_once_an_epoch(sizes, buffer, seed):
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), sizes)
        found = {0: [], 1: []}
        row, position = reader(name, buffer=buffer, seed=seed), 0
        while (epoch := row.window(position).cursor["epoch"]) < 2:
            found[epoch].append(row[position].key)
            position += 1
        assert sorted(found[0]) == sorted(found[1]) == all_keys(sizes)
        assert sum(sizes) < 9 or found[0] != found[1]


def test_order_is_a_function_of_seed_and_position(folder):
    row = reader(folder)
    first = keys(row.since(0), 60)
    assert keys(reader(folder).since(0), 60) == first
    assert [row[position].key for position in (3, 59, 0, 30)] == [first[3], first[59], first[0], first[30]]
    assert keys(reader(folder, seed=2).since(0), 60) != first
    assert keys(pickle.loads(pickle.dumps(row)).since(0), 60) == first  # noqa: S301 (as a worker that is spawned)


def test_window_is_shuffled_as_a_whole_and_holds_no_more_shards_than_it_needs(tmp_path):
    write_shards(tmp_path, [20] * 4)
    row = reader(tmp_path, buffer=40)
    found = keys(row.since(0), 80)
    assert [len({key[0] for key in found[i : i + 40]}) for i in (0, 40)] == [2, 2]
    assert all(len({key[0] for key in found[i : i + 10]}) == 2 for i in range(0, 80, 10))
    assert len(row.windows) == 2
    whole = keys(reader(tmp_path, buffer=1000).since(0), 20)
    assert len({key[0] for key in whole}) == 4


@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.5, 1.0)])
def test_sources_are_mixed_by_weight(tmp_path, weights):
    for name in "ab":
        for s in range(4):
            write(tmp_path / name / f"{s}.tar", [f"{name}{s}-{i}" for i in range(20)])
    row = reader(tmp_path, "a/*.tar", "b/*.tar", buffer=50, weights=weights)
    found = keys(row.since(0), int(80 * sum(weights)))
    assert sum(key[0] == "a" for key in found) == 80 * weights[0]
    assert {key for key in found if key[0] == "b"} == {f"b{s}-{i}" for s in range(4) for i in range(20)}
    counts = Counter(key for key in found if key[0] == "a")
    assert set(counts.values()) == {int(weights[0]) or 1}


def test_runs_are_of_one_source_in_every_window(tmp_path):
    for name in "ab":
        for s in range(4):
            write(tmp_path / name / f"{s}.tar", [f"{name}{s}-{i}" for i in range(20)])
    found = keys(reader(tmp_path, "a/*.tar", "b/*.tar", buffer=40, run=5).since(0), 160)
    kinds = [{key[0] for key in found[i : i + 5]} for i in range(0, 160, 5)]
    assert all(len(kind) == 1 for kind in kinds)
    assert {next(iter(kind)) for kind in kinds} == {"a", "b"}


@pytest.mark.parametrize(("weight", "run"), [(0.01, 1), (1.0, 30)])
def test_weights_that_leave_nothing_are_an_error(folder, weight, run):
    with pytest.raises(UserError, match="weights"):
        reader(folder, weights=[weight], run=run)[0]


# Going on


def test_every_position_can_be_gone_on_from_its_cursor(folder):
    row, found, cursors = reader(folder), [], []
    for position in range(60):
        found.append(row[position].key)
        cursors.append(json.loads(json.dumps(row.window(position).cursor)))
    assert cursors[-1]["epoch"] >= 2
    for position, cursor in enumerate(cursors):
        assert keys(reader(folder, cursor=cursor).since(position), 60 - position) == found[position:]


def test_cursor_of_other_shards_is_refused(folder, tmp_path):
    write_shards(tmp_path, [5, 4])
    with pytest.raises(UserError, match=r"4 shards.* 2 "):
        reader(tmp_path, cursor=reader(folder).window(0).cursor)


def test_batches_are_the_same_with_any_number_of_workers_and_processes(root, processors):
    wanted = recipe(root, [IMAGES, SOUNDS], {"shuffle_buffer": 5}, batch_size=4)
    made = list(loader(make_steps(processors, wanted), 0, 12, 0))
    assert same(list(loader(make_steps(processors, wanted), 0, 12, 2)), made)
    # On from the middle, in two processes where there was one.
    cursors = {}
    for _, after in made[:5]:
        cursors.update(after)
    ranks = [make_steps(processors, wanted, rank, 2, cursors) for rank in range(2)]
    for step in range(5, 12):
        halves = zip(*(batches(steps, step) for steps in ranks), strict=True)
        assert [a.keys + b.keys for a, b in halves] == [batch.keys for batch in made[step][0]]


# Memory


def test_memory_does_not_grow_with_shards(tmp_path):
    write(tmp_path / "0.tar", [f"k{i}" for i in range(50)], size=2000)
    for i in range(1, 80):
        os.link(tmp_path / "0.tar", tmp_path / f"{i}.tar")

    def peak(pattern):
        row = reader(tmp_path, pattern, buffer=100)
        tracemalloc.start()
        for sample in map(row.__getitem__, range(500)):
            sample.read("image")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few = peak("[0-9].tar")
    assert peak("*.tar") < 1.3 * few
    assert len(os.listdir(Path(os.environ["ONEPEACE_CACHE"]) / "shards")) > 10  # one index each


# What breaks


def test_broken_samples_are_left_out_and_named(tmp_path, caplog):
    write(tmp_path / "0.tar", [f"a{i}" for i in range(9)], without={"a2", "a5"})
    write(tmp_path / "1.tar", [f"b{i}" for i in range(9)])
    shard = tmp_path / "1.tar"
    content = bytearray(shard.read_bytes())
    content[512 * 4 * 3 + 100] ^= 1  # in the header of b3.jpg
    shard.write_bytes(content[: 512 * 4 * 7 + 700])  # and it ends within b7
    (tmp_path / "2.tar").write_bytes(b"no tar at all")
    row = reader(tmp_path, buffer=100)
    good = sorted([f"a{i}" for i in (0, 1, 3, 4, 6, 7, 8)] + [f"b{i}" for i in (0, 1, 2, 4, 5, 6)])
    assert sorted(keys(row.since(0), 13)) == good
    # a2, a5, the damage, b3 without its picture, the end within b7 and b7 without its caption, 2.tar
    assert row.sources[0].broken == 7
    assert "0.tar: a2.json cannot be read" in caplog.text


def test_shards_without_a_usable_sample_are_passed_over_but_an_epoch_of_them_is_an_error(tmp_path):
    write(tmp_path / "a.tar", ["x", "y"])
    write(tmp_path / "b.tar", [])
    assert set(keys(reader(tmp_path, buffer=1).since(0), 12)) == {"x", "y"}
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"\*\.tar\*: no usable sample"):
        reader(tmp_path)[0]


def test_shard_that_changes_under_a_run_is_named(tmp_path):
    write(tmp_path / "a.tar", ["x", "y"])
    sample = reader(tmp_path)[0]
    os.truncate(tmp_path / "a.tar", 100)
    with pytest.raises(UserError, match=r"a\.tar: has become shorter"):
        sample.read("image")


def test_batches_by_source_are_of_one_source_over_all_processes(root, processors):
    train = [IMAGES, {**IMAGES, "shards": "more.tar"}]
    ranks = [make_steps(processors, recipe(root, train, {"batches": "by_source"}, 4), rank, 2) for rank in range(2)]
    for step in range(6):
        (first,), (second,) = (batches(steps, step) for steps in ranks)
        assert len({len(key) for key in first.keys + second.keys}) == 1  # p7, p100
