"""The steps of several processes and workers: the same batches however they are spread, and each reads its part."""

import json

import numpy as np
import pytest
from support.batches import IMAGES, SOUNDS, batches, make_steps, pictures, recipe, same
from support.server import Requests, serving
from support.small_shards import write_tar

from onepeace.data import shard as shard_module
from onepeace.data import shard_cache
from onepeace.data import shards as shards_module
from onepeace.data.shard import Extent
from onepeace.data.steps import loader
from onepeace.errors import UserError

VARIED = {
    "augment": {"image": {"crop_scale": [0.3, 1.0], "flip": True}, "audio": {"mix": 0.5}},
    "shuffle_buffer": 8,
}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eight shards, one of them compressed, with 3 to 6 pictures; the fifth of every eight cannot be decoded."""
    folder = tmp_path_factory.mktemp("many")
    first = 0
    for number in range(8):
        count = 3 + number % 4
        members = pictures(count, first=first)
        for name in members:
            if name.endswith("4.png"):
                members[name] = b"rubbish"
        write_tar(folder / f"pictures-{number}.tar{'.gz' if number == 3 else ''}", members)
        first += count
    return folder


def rows(processors, wanted, world_size, workers, start=0, stop=6, cursors=None):
    """The items of each step over all processes: keys, captions and the pixels' means."""
    steps = []
    cursors_of_last = {}
    for rank in range(world_size):
        made = list(loader(make_steps(processors, wanted, rank, world_size, cursors), start, stop, workers))
        steps.append(made)
        cursors_of_last.update(made[-1].cursors)
    found = []
    for parts in zip(*steps, strict=True):
        of_step = []
        for part in parts:
            for batch in part.batches:
                values = batch.inputs["image"]["pixels"].flatten(1).mean(1).tolist()
                of_step += zip(batch.keys, batch.captions, values, strict=True)
        found.append(of_step)
    return found, cursors_of_last


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_batches_are_the_same_for_any_number_of_processes_and_workers(many, processors):
    wanted = recipe(many, [IMAGES], VARIED, batch_size=8)
    expected, _ = rows(processors, wanted, world_size=1, workers=0)
    assert {key for step in expected for key, *_ in step} >= {f"p{i}" for i in (0, 1, 2, 3, 5)}
    assert not any(key.endswith("4") for step in expected for key, *_ in step)
    for world_size, workers in ((1, 3), (2, 0), (2, 1), (4, 0), (4, 1), (8, 0)):
        assert rows(processors, wanted, world_size, workers)[0] == expected


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 4), (4, 1)])
def test_run_goes_on_with_another_number_of_processes(many, processors, before, after):
    wanted = recipe(many, [IMAGES], VARIED, batch_size=8)
    expected, _ = rows(processors, wanted, world_size=1, workers=0, stop=16)
    first, cursors = rows(processors, wanted, before, workers=0, stop=9)
    cursors = json.loads(json.dumps(cursors))
    second, _ = rows(processors, wanted, after, workers=0, start=9, stop=16, cursors=cursors)
    assert first + second == expected
    assert {cursor["epoch"] for cursor in cursors.values()} == {1, 2}
    resumed = make_steps(processors, wanted, 0, after, cursors).readers["image+text"]
    assert all(lane.begin == cursors[f"image+text/{number}"] for number, lane in resumed.lanes.items())


def test_number_of_lanes_is_kept_by_the_cursors(many, processors):
    wanted = recipe(many, [IMAGES], {**VARIED, "lanes": 2}, batch_size=8)
    steps = make_steps(processors, wanted)
    assert steps.readers["image+text"].num_lanes == 2
    cursors = steps[3].cursors
    without = recipe(many, [IMAGES], VARIED, batch_size=8)
    assert make_steps(processors, without).readers["image+text"].num_lanes == 8
    assert same(make_steps(processors, without, cursors=cursors)[4], steps[4])
    with pytest.raises(UserError, match=r"data\.lanes is 4.*written with 2"):
        make_steps(processors, recipe(many, [IMAGES], {**VARIED, "lanes": 4}, batch_size=8), cursors=cursors)


@pytest.mark.parametrize(("lanes", "batch_size"), [(3, 8), (16, 32)])
def test_lanes_divide_the_batch_and_have_shards(many, processors, lanes, batch_size):
    with pytest.raises(UserError, match=rf"data\.lanes is {lanes}: .*batches of {batch_size} and 8 shards"):
        make_steps(processors, recipe(many, [IMAGES], {"lanes": lanes}, batch_size=batch_size))


def test_process_opens_only_the_shards_of_its_lanes(many, processors, monkeypatch):
    opened = []
    open_shard = shards_module.open_shard
    monkeypatch.setattr(
        shards_module, "open_shard", lambda address, size: opened.append(address) or open_shard(address, size)
    )
    wanted = recipe(many, [IMAGES], {"shuffle_buffer": 8}, batch_size=8)
    shards_by_rank = []
    for rank in range(4):
        opened.clear()
        make_steps(processors, wanted, rank, 4)[0]
        shards_by_rank.append({*opened})
    assert [len(shards) for shards in shards_by_rank] == [2] * 4
    assert len(set.union(*shards_by_rank)) == 8


def test_remote_shards_are_requested_once_in_all(many, processors, monkeypatch, tmp_path):
    """By four processes with a cache each, as machines have, and by four that share one."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(shard_cache, "PAUSES", ())
    requests = Requests()
    names = "{0.tar,1.tar,2.tar,3.tar.gz,4.tar,5.tar,6.tar,7.tar}"  # two for each of four lanes
    train = {"shards": f"pictures-{names}", "pair": ["image", "text"]}
    expected, _ = rows(processors, recipe(many, [train], VARIED, batch_size=4), 1, workers=0, stop=2)
    for caches in (["a", "b", "c", "d"], ["one"] * 4):
        requests.counts.clear()
        with serving(requests.handler(many)) as address:
            wanted = recipe(address, [train], VARIED, batch_size=4)
            for rank, cache in enumerate(caches):
                monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / cache))
                made = list(loader(make_steps(processors, wanted, rank, 4), 0, 2, 0))
                assert [step.batches[0].keys for step in made] == [[step[rank][0]] for step in expected]
        assert set(requests.counts.values()) == {1}
        assert 4 <= len(requests.counts) <= 8


def test_read_that_fails_once_in_a_process_changes_nothing(many, processors, monkeypatch):
    monkeypatch.setattr(shard_module, "READ_PAUSES", (0.0,))
    wanted = recipe(many, [IMAGES], VARIED, batch_size=8)
    expected, _ = rows(processors, wanted, world_size=1, workers=0)
    calls = []
    read = shard_module.OpenFile.read_any

    def failing(file, offset, size):
        calls.append(offset)
        if len(calls) % 7 == 3:  # while shards are opened, and while samples and pictures are read
            raise OSError(5, "Input/output error")
        return read(file, offset, size)

    monkeypatch.setattr(shard_module.OpenFile, "read_any", failing)
    assert rows(processors, wanted, world_size=2, workers=0)[0] == expected
    assert len(calls) > 100


def test_what_is_not_drawn_is_neither_parsed_nor_read(many, processors, monkeypatch):
    parsed, read = [], []
    parse_sample = shards_module.parse_sample
    read_extent = Extent.read
    monkeypatch.setattr(shards_module, "parse_sample", lambda key, **kw: parsed.append(key) or parse_sample(key, **kw))
    monkeypatch.setattr(Extent, "read", lambda extent: read.append(extent) or read_extent(extent))
    steps = make_steps(processors, recipe(many, [IMAGES], batch_size=4))
    made = steps[0]
    drawn = made.batches[0].keys + made.batches[0].replaced
    assert sorted(parsed) == sorted(drawn)
    assert len(read) == 2 * len(drawn)  # the .json and the picture
    assert made.listed.tolist() == [[36, 8]]  # although all are shuffled


def test_cache_that_is_too_small_for_the_shards_read_at_a_time_is_told(many, processors, caplog):
    train = {**IMAGES, "shards": "pictures-3.tar.gz"}
    make_steps(processors, recipe(many, [train], batch_size=4)).open(0)
    assert caplog.text == ""
    make_steps(processors, recipe(many, [train], {"cache_gigabytes": 1e-5}, batch_size=4)).open(0)
    assert "data.cache_gigabytes is 1e-05, too little for the shards" in caplog.text


def test_batches_by_source_are_of_one_source_over_all_processes(root, processors):
    train = [IMAGES, {**IMAGES, "shards": "more.tar"}]
    ranks = [make_steps(processors, recipe(root, train, {"batches": "by_source"}, 4), rank, 2) for rank in range(2)]
    for step in range(6):
        (first,), (second,) = (batches(steps, step) for steps in ranks)
        assert len({len(key) for key in first.keys + second.keys}) == 1  # p7, p100
    with pytest.raises(UserError, match=r"data\.lanes is 2.*one lane"):
        recipe(root, train, {"batches": "by_source", "lanes": 2}, 4)


def test_batches_of_two_names_have_lanes_of_their_own(root, processors):
    wanted = recipe(root, [IMAGES, SOUNDS], {"shuffle_buffer": 5}, batch_size=4)
    made = list(loader(make_steps(processors, wanted), 0, 8, 0))
    assert set(made[0].cursors) == {"image+text/0", "image+text/1", "audio+text/0"}
    assert same(list(loader(make_steps(processors, wanted), 0, 8, 2)), made)
    halves = [make_steps(processors, wanted, rank, 2) for rank in range(2)]
    for step in range(8):
        parts = [batches(steps, step) for steps in halves]
        for whole, first, second in zip(made[step].batches, *parts, strict=True):
            assert first.keys + second.keys == whole.keys
    assert np.array_equal(made[3].digests != 0, np.ones(5, bool))
