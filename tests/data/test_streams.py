import copy
import json
import pickle
import tarfile
import tempfile
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_shards import write_tar
from support.streams import PAIR, at, keys, write, write_shards

from onepeace.data.shards import expand
from onepeace.data.streams import Mixture, StreamShard, first_samples, processes_of, work_units
from onepeace.errors import UserError


def places_of(row):
    while True:
        yield next(row.place())


def all_keys(sizes):
    return sorted(f"{s}-{i}" for s, size in enumerate(sizes) for i in range(size))


def epoch_of(row):
    """The epoch of the sample that comes next."""
    peek = copy.copy(row)
    peek.seek(row.position)
    next(peek)
    return peek.position["epoch"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("streams"), [5, 4, 7, 3])


# Which shards


def test_addresses_are_expanded_and_nothing_is_opened():
    assert expand("https://x.org/a-{01..03}.tar") == [f"https://x.org/a-0{i}.tar" for i in (1, 2, 3)]
    assert expand("b/{y,x}.tar?k=1", "gs://bucket/data/") == [f"gs://bucket/data/b/{k}.tar?k=1" for k in "xy"]
    with pytest.raises(UserError, match=r"^s3://b/x\.tar: webdataset does not open s3; it opens .*https"):
        expand("s3://b/x.tar")
    with pytest.raises(UserError, match=r"cannot be listed; write the numbers as \{000\.\.031\}, not \*"):
        expand("https://x.org/*.tar")
    with pytest.raises(UserError, match="brace is not closed"):
        expand("a-{1..3.tar")


def test_messages_do_not_tell_the_secrets_of_an_address():
    with pytest.raises(UserError) as caught:
        expand("s3://me:secret@b/x.tar?token=secret")
    assert "secret" not in str(caught.value)


# Which worker reads what


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 7), st.integers(1, 6), st.integers(0, 9))
@settings(deadline=None, derandomize=True, max_examples=25)
def test_the_workers_together_have_each_sample_once_per_epoch(sizes, workers, window, seed):
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), sizes)
        assert len(work_units(shards, workers)) >= workers
        for epoch in (0, 3):
            found = []
            for worker in range(workers):
                row = StreamShard(shards, PAIR, seed=seed, worker=worker, num_workers=workers, shuffle_buffer=window)
                row.seek({**row.position, "epoch": epoch})
                while epoch_of(row) == epoch:
                    found.append(next(row).key)
            assert sorted(found) == all_keys(sizes)


def test_order_is_a_function_of_seed_source_lane_and_epoch(shards):
    def row(**kw):
        return keys(StreamShard(shards, PAIR, **{"seed": 1, "shuffle_buffer": 6, **kw}), 38)

    first = row()
    assert row() == first
    assert sorted(first[:19]) == sorted(first[19:]) == all_keys([5, 4, 7, 3])
    assert first[:19] != first[19:]
    assert row(seed=2) != first
    assert row(source=1) != first
    assert row(worker=0, num_workers=2) != row(worker=1, num_workers=2)


def test_shards_are_mixed_within_a_buffer(tmp_path):
    shards = write_shards(tmp_path, [20] * 4)
    found = keys(StreamShard(shards, PAIR, seed=1, shuffle_buffer=80), 80)
    assert found != sorted(found)
    assert all(len({key[0] for key in found[i : i + 20]}) >= 3 for i in (0, 20, 40, 60))
    # A buffer of one is the order of the shards, each from its beginning to its end.
    plain = keys(StreamShard(shards, PAIR, seed=1, shuffle_buffer=1), 80)
    assert [plain[i : i + 20] for i in range(0, 80, 20)] == [
        [f"{s}-{i}" for i in range(20)] for s in dict.fromkeys(int(key[0]) for key in plain)
    ]


def test_parts_of_processes_are_read_by_fewer_processes():
    assert [processes_of(rank, 2, 8) for rank in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert processes_of(3, 4, 4) == [3]
    with pytest.raises(UserError, match=r"with 6 processes, whose data 4 cannot .* to one of 1, 2, 3, 6"):
        processes_of(0, 4, 6)


# Going on


@pytest.mark.parametrize(("worker", "workers"), [(0, 1), (1, 3), (4, 6)])
def test_worker_goes_on_at_every_position(shards, worker, workers):
    def make():
        return StreamShard(shards, PAIR, seed=3, worker=worker, num_workers=workers, shuffle_buffer=4)

    row, places, whole = make(), [], []
    for _ in range(45):
        places.append(json.loads(json.dumps(row.position)))
        whole.append(next(row))
    assert places[-1]["epoch"] >= 2
    for i, place in enumerate(places):
        again = at(make(), place)
        assert again.position == place
        assert list(islice(again, len(whole) - i)) == whole[i:]
        assert again.position == row.position


def test_position_counts_what_is_broken_once(tmp_path):
    shards = [write(tmp_path / f"{s}.tar", [f"{s}-{i}" for i in range(9)], without={f"{s}-3"}) for s in range(3)]
    whole = Path(shards[2]).read_bytes()
    Path(shards[2]).write_bytes(whole[: 512 * 4 * 6 + 700])  # in a member of 2-6
    with tarfile.open(shards[0]) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    write_tar(Path(shards[0]), [*members, *((f"{key}.jpg", b"1") for key in ("twice", "twice", "end"))])  # no captions
    twice = [(f"3-{i}.{end}", data) for i in range(2) for end, data in (("jpg", b"1"), ("txt", b"gull")) for _ in "ab"]
    shards.append(str(write_tar(tmp_path / "3.tar", twice)))

    def make():
        return StreamShard(shards, PAIR, seed=1, shuffle_buffer=4, broken_limit=1)

    row, places, found = make(), [], []
    for _ in range(60):
        places.append(row.position)
        found.append(next(row).key)
    assert "2-5" in found
    assert not {"0-3", "1-3", "2-3"} & set(found)
    for i, place in enumerate(places):
        again = at(make(), place)
        assert keys(again, len(found) - i) == found[i:]
        assert again.position == row.position
    # In an epoch: 8 + 8 + 5 + 2 usable ones; three broken json without another caption, half a sample and the shard
    # that ends there, two samples of a picture only, and five members that come twice.
    ends = [place for place in places if place["unit"] == place["sample"] == place["offset"] == 0]
    assert [(place["epoch"], place["good"], place["broken"]) for place in ends] == [(0, 0, 0)]
    epochs = [next(place for place in places if place["epoch"] == epoch) for epoch in (1, 2)]
    assert [(place["good"], place["broken"]) for place in epochs] == [(23, 12), (46, 24)]


def test_worker_that_has_read_nothing_can_be_sent_to_a_worker(shards):
    row = StreamShard(shards, PAIR, seed=1)
    assert keys(pickle.loads(pickle.dumps(row)), 30) == keys(row, 30)  # noqa: S301


def test_position_of_another_layout_is_refused(shards):
    row = StreamShard(shards, PAIR, seed=1, worker=1, num_workers=2)
    with pytest.raises(UserError, match=r"worker 1 of 2 over 4 shards, and this is worker 1 of 3 over 4"):
        at(StreamShard(shards, PAIR, seed=1, worker=1, num_workers=3), row.position)
    with pytest.raises(UserError, match=r"over 4 shards, and this is worker 1 of 2 over 3"):
        at(StreamShard(shards[:3], PAIR, seed=1, worker=1, num_workers=2), row.position)
    with pytest.raises(UserError, match="of 1 sources, and the recipe has 2"):
        Mixture([row, row], [1, 1], position=Mixture([row], [1]).position)


# Memory


def test_memory_holds_one_buffer(tmp_path):
    size, window = 20_000, 10
    shards = write_shards(tmp_path, [60] * 3, size=size)

    def peak(**kw):
        row = StreamShard(shards, PAIR, seed=1, **kw)
        next(row)
        tracemalloc.start()
        for _ in range(200):
            next(row)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(shuffle_buffer=window) < 2 * window * size
    assert peak(shuffle_buffer=1000, shuffle_buffer_megabytes=window * size / 2**20) < 2 * window * size
    assert peak(shuffle_buffer=1000) > 100 * size


def test_every_picture_of_a_sample_fills_the_buffer(tmp_path):
    members = {f"p{i}.{name}": b"x" * 100 for i in range(6) for name in ("png", "2.png")}
    shard = write_tar(tmp_path / "a.tar", members)
    row = StreamShard([str(shard)], ("image",), seed=1, shuffle_buffer_megabytes=400 / 2**20)
    buffers = [(next(row), row.position)[1]["buffer"] for _ in range(5)]
    assert buffers == [0, 1, 1, 2, 2]


# Mixing


@pytest.fixture
def two_sources(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for s, size in enumerate([30, 20]):
            write(tmp_path / name / f"{s}.tar", [f"{name}{s}-{i}" for i in range(size)])

    def make(weights=(3, 1), **kw):
        sources = [
            StreamShard(expand(f"{name}/*.tar", tmp_path), PAIR, seed=1, source=i, shuffle_buffer=7)
            for i, name in enumerate("ab")
        ]
        return Mixture(sources, weights, **kw)

    return make


def test_sources_come_by_weight(two_sources):
    found = keys(places_of(two_sources()), 400)
    assert 270 < sum(key[0] == "a" for key in found) < 330
    assert keys(places_of(two_sources()), 400) == found
    assert keys(places_of(two_sources(pair=1)), 400) != found
    assert {key[0] for key in keys(places_of(two_sources((1, 0))), 50)} == {"a"}


def test_place_is_one_of_the_row_however_many_samples_it_takes(two_sources):
    row, plain = two_sources((1, 1), run=5), two_sources((1, 1), run=5)
    kinds = []
    for i in range(40):
        place = row.place()
        kinds.append(next(place).key[0])
        if i % 7 == 0:
            keys(place, 3)  # cannot be decoded, say
    assert kinds == [key[0] for key in keys(places_of(plain), 40)]
    assert row.position["count"] == plain.position["count"] == 40


def test_runs_are_of_one_source(two_sources):
    found = keys(places_of(two_sources((1, 1), run=5)), 200)
    kinds = [{key[0] for key in found[i : i + 5]} for i in range(0, 200, 5)]
    assert all(len(kind) == 1 for kind in kinds)
    assert 10 < sum(kind == {"a"} for kind in kinds) < 30


def test_mixture_goes_on_at_every_position(two_sources):
    row, places, whole = two_sources(), [], []
    for _ in range(60):
        places.append(json.dumps(row.position))
        whole.append(next(row.place()).key)
    for i, place in enumerate(places):
        assert keys(places_of(two_sources(position=json.loads(place))), len(whole) - i) == whole[i:]


def test_another_sample_moves_nothing_and_is_the_same_after_a_restart(two_sources):
    row, plain = two_sources(), two_sources()
    drawn = set()
    for i in range(60):
        place = json.loads(json.dumps(row.position))
        other = row.another(np.random.default_rng(i))
        assert two_sources(position=place).another(np.random.default_rng(i)) == other
        assert row.position == place
        assert next(row.place()) == next(plain.place())
        drawn.add(other.key)
    assert len(drawn) > 20
    assert {key[0] for key in drawn} == {"a", "b"}


# What breaks


def test_rotten_source_stops_with_one_line(tmp_path):
    names = [f"k{i}" for i in range(300)]
    shard = write(tmp_path / "a.tar", names, without=set(names[100:]))
    with pytest.raises(UserError, match=r"a\.tar: 11 broken to 100 usable .*data\.broken_limit$") as caught:
        next(StreamShard([shard], PAIR, seed=1, broken_limit=0.05))
    assert "\n" not in str(caught.value)
    assert len(keys(StreamShard([shard], PAIR, seed=1, broken_limit=1), 250)) == 250


def test_few_broken_are_named_and_left_out(tmp_path, caplog):
    shard = write(tmp_path / "a.tar", [f"k{i}" for i in range(8)], without={"k2", "k5"})
    assert sorted(set(keys(StreamShard([shard], PAIR, seed=1, broken_limit=0), 12))) == [
        f"k{i}" for i in (0, 1, 3, 4, 6, 7)
    ]
    assert "a.tar: k2.json cannot be read" in caplog.text
    assert caplog.text.count("broken and left out") == 3  # of the two in each epoch


def test_json_nested_too_deeply_is_only_broken(tmp_path):
    deep = {"x.jpg": b"1", "x.json": b"[" * 100_000, "x.txt": b"a gull"}
    shard = write_tar(tmp_path / "a.tar", {**deep, "y.jpg": b"1", "y.json": b'{"captions": "a sheep"}'})
    found = first_samples([str(shard)], PAIR, 2)
    assert [sample.captions for sample in found] == [["a gull"], ["a sheep"]]


def test_worker_over_shards_without_usable_samples_stops(tmp_path):
    shards = [write(tmp_path / f"{i}.tar", ["x", "y"], without={"x", "y"}) for i in range(2)]
    with pytest.raises(UserError, match=r"0\.tar \(of 2 shards\): no usable sample for worker 2 of 4; .*[01]\.tar: y"):
        next(StreamShard(shards, PAIR, seed=1, worker=2, num_workers=4, broken_limit=1))
    empty = write(tmp_path / "empty.tar", [])
    with pytest.raises(UserError, match=r"empty\.tar: no usable sample for worker 0 of 1; the shards are empty"):
        next(StreamShard([empty], PAIR, seed=1))
    with pytest.raises(UserError, match=r"0\.tar.*: no usable sample; .*1\.tar: y"):
        next(first_samples(shards, PAIR, 3))


def test_dead_shard_or_more_workers_than_samples_stop_no_lane(tmp_path):
    shards = [write(tmp_path / "a.tar", ["x", "y"]), write(tmp_path / "b.tar", [])]
    for workers in (2, 7):
        for worker in range(workers):
            assert set(keys(StreamShard(shards, PAIR, seed=1, worker=worker, num_workers=workers), 12)) == {"x", "y"}
