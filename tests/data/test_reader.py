"""The steps of several processes and workers: the same batches however they are spread, and each reads its part."""

import json
import threading
from typing import NamedTuple

import pytest
from support.batches import IMAGES, batches, make_steps, pictures, recipe, same
from support.server import Requests, serving
from support.small_shards import write_tar

from onepeace.data import reader as reader_module
from onepeace.data import shard as shard_module
from onepeace.data import source as source_module
from onepeace.data.shard import Extent
from onepeace.data.steps import loader
from onepeace.errors import UserError

NAME = "image+text"
VARIED = {
    "augment": {
        "image": {"crop_scale": [0.3, 1.0], "flip": True},
        "audio": {"mix": 0.5},
    },
    "shuffle_buffer": 8,
}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Eight shards of 3 to 6 pictures, one of them compressed; p4, p14, p24 and p34 cannot be decoded."""
    folder = tmp_path_factory.mktemp("many")
    first = 0
    for number in range(8):
        count = 3 + number % 4
        members = pictures(count, first=first)
        for name in members:
            if name.endswith("4.png"):
                members[name] = b"rubbish"
        suffix = ".tar.gz" if number == 3 else ".tar"
        write_tar(folder / f"pictures-{number}{suffix}", members)
        first += count
    return folder


class Row(NamedTuple):
    """What is compared of an item."""

    key: str
    caption: str
    mean: float


def rows_of(step):
    """The rows of a step of one process."""
    rows = []
    for batch in step.batches:
        means = batch.inputs["image"]["pixels"].flatten(1).mean(1).tolist()
        rows += map(Row, batch.keys, batch.captions, means)
    return rows


def run_processes(processors, run_recipe, world_size, workers=0, start=0, stop=6, cursors=None):
    """The rows of each step over all processes, and the cursors after the last one."""
    rows_by_step = [[] for _ in range(start, stop)]
    cursors_after = {}
    for rank in range(world_size):
        steps = make_steps(processors, run_recipe, rank, world_size, cursors)
        for rows, step in zip(rows_by_step, loader(steps, start, stop, workers), strict=True):
            rows += rows_of(step)
        cursors_after.update(step.cursors)
    return rows_by_step, cursors_after


# The same batches


@pytest.fixture(scope="module")
def varied_recipe(many):
    return recipe(many, [IMAGES], VARIED, batch_size=8)


@pytest.fixture(scope="module")
def rows_of_one_process(varied_recipe, processors):
    """The rows of the first six steps."""
    rows_by_step, _ = run_processes(processors, varied_recipe, world_size=1)
    return rows_by_step


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("world_size", "workers"),
    [(1, 3), (2, 1), (8, 0)],
)
def test_batches_do_not_depend_on_processes_and_workers(
    varied_recipe, rows_of_one_process, processors, world_size, workers
):
    rows_by_step, _ = run_processes(processors, varied_recipe, world_size, workers)
    assert rows_by_step == rows_of_one_process


@pytest.mark.parametrize(("before", "after"), [(2, 4), (4, 1)])
def test_resume_with_another_number_of_processes(many, processors, before, after):
    run_recipe = recipe(many, [IMAGES], VARIED, batch_size=8)
    expected, _ = run_processes(processors, run_recipe, world_size=1, stop=16)
    first, cursors = run_processes(processors, run_recipe, before, stop=9)
    cursors = json.loads(json.dumps(cursors))
    second, _ = run_processes(processors, run_recipe, after, start=9, stop=16, cursors=cursors)
    assert first + second == expected
    assert {cursor["epoch"] for cursor in cursors.values()} == {1, 2}
    resumed = make_steps(processors, run_recipe, 0, after, cursors).readers[NAME]
    for number, lane in resumed.lanes.items():
        assert lane.begin == cursors[f"{NAME}/{number}"]


def source_of_key(key):
    """In the folder ``root`` the numbers of more.tar begin at 100."""
    return "more.tar" if int(key.removeprefix("p")) >= 100 else "pictures"


def test_batches_by_source_are_of_one_source_over_all_processes(root, processors):
    train = [IMAGES, {**IMAGES, "shards": "more.tar"}]
    run_recipe = recipe(root, train, {"batches": "by_source"}, batch_size=4)
    ranks = [make_steps(processors, run_recipe, rank, 2) for rank in range(2)]
    for number in range(6):
        keys = []
        for steps in ranks:
            (batch,) = batches(steps, number)
            keys += batch.keys
        sources = {source_of_key(key) for key in keys}
        assert len(sources) == 1, keys


# Lanes


@pytest.fixture(scope="module")
def steps_of_two_lanes(many, processors):
    """The steps of a run whose recipe asks for two lanes."""
    return make_steps(processors, recipe(many, [IMAGES], {**VARIED, "lanes": 2}, batch_size=8))


def test_lanes_of_the_cursors_are_kept(steps_of_two_lanes, varied_recipe, processors):
    cursors = steps_of_two_lanes[3].cursors
    resumed = make_steps(processors, varied_recipe, cursors=cursors)
    assert same(resumed[4], steps_of_two_lanes[4])


def test_lanes_other_than_those_of_the_cursors_are_refused(many, steps_of_two_lanes, processors):
    four_lanes = recipe(many, [IMAGES], {**VARIED, "lanes": 4}, batch_size=8)
    with pytest.raises(UserError, match=r"data\.lanes is 4.*2"):
        make_steps(processors, four_lanes, cursors=steps_of_two_lanes[3].cursors)


@pytest.mark.parametrize(("lanes", "batch_size"), [(3, 8), (16, 32)])
def test_lanes_divide_the_batch_and_have_shards(many, processors, lanes, batch_size):
    run_recipe = recipe(many, [IMAGES], {"lanes": lanes}, batch_size=batch_size)
    with pytest.raises(UserError, match=rf"data\.lanes is {lanes}: .*batches of {batch_size} and 8 shards"):
        make_steps(processors, run_recipe)


def test_line_at_the_start_says_how_often_a_shard_is_fetched(processors, monkeypatch, caplog):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    caplog.set_level("INFO")
    train = {"shards": "pictures-{0..7}.tar", "pair": ["image", "text"]}
    run_recipe = recipe("https://x.org", [train], {"lanes": 8}, batch_size=96)
    for world_size in (4, 6):
        make_steps(processors, run_recipe, 0, world_size)._tell_fetches()
    once, more_often = caplog.messages
    assert once == "image+text: each of 8 shards is fetched 1 times an epoch (machines: 2, lanes: 8)"
    assert "is fetched 1.25 times an epoch (machines: 3, lanes: 8); for once set" in more_often


# What is read


def test_shards_of_the_next_window_are_fetched_ahead_once_and_none_of_the_next_epoch(many, processors, monkeypatch):
    """Only by those who read: before workers are forked, no thread may run."""
    fetched = []
    monkeypatch.setattr(reader_module, "fetch_ahead", lambda addresses, cache_bytes: fetched.append(list(addresses)))
    steps = make_steps(processors, recipe(many, [IMAGES], {"shuffle_buffer": 8, "lanes": 1}, batch_size=4))
    steps.open(0)
    assert fetched == []
    (lane,) = steps.readers[NAME].lanes.values()
    for number in range(10):
        steps[number]
    assert lane.windows[0].cursor["epoch"] == 1
    opened_first = {candidates.shard.file.address for candidates in lane.window(0).shards}
    in_first_epoch = {address for addresses in fetched[:-1] for address in addresses}
    assert in_first_epoch == {*steps.sources[0].shards} - opened_first


def test_samples_not_drawn_are_neither_parsed_nor_read(many, processors, monkeypatch):
    parsed = []
    read = []
    parse_sample = source_module.parse_sample
    read_extent = Extent.read

    def parse_and_note(key, **options):
        parsed.append(key)
        return parse_sample(key, **options)

    def read_and_note(extent):
        read.append(extent)
        return read_extent(extent)

    monkeypatch.setattr(source_module, "parse_sample", parse_and_note)
    monkeypatch.setattr(Extent, "read", read_and_note)
    step = make_steps(processors, recipe(many, [IMAGES], batch_size=4))[0]
    (batch,) = step.batches
    assert set(parsed) >= set(batch.keys)
    assert step.drawn == [len(parsed)] == [len(batch.keys) + len(step.lost)]  # although all are shuffled
    assert len(read) == 2 * len(parsed)  # the .json and the picture


def test_remote_shards_are_requested_once_in_all(many, processors, monkeypatch, tmp_path):
    """By four processes with a cache each, as machines have, and by four that share one."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(shard_module, "FETCH_PAUSES", ())  # a request that is tried again is another one
    requests = Requests()
    names = "{0.tar,1.tar,2.tar,3.tar.gz,4.tar,5.tar,6.tar,7.tar}"  # two for each of four lanes
    train = {"shards": f"pictures-{names}", "pair": ["image", "text"]}
    local_recipe = recipe(many, [train], VARIED, batch_size=4)
    expected, _ = run_processes(processors, local_recipe, world_size=1, stop=2)
    for caches in (["a", "b", "c", "d"], ["one"] * 4):
        requests.counts.clear()
        with serving(requests.handler(many)) as address:
            run_recipe = recipe(address, [train], VARIED, batch_size=4)
            for rank, cache in enumerate(caches):
                monkeypatch.setenv("ONEPEACE_CACHE", str(tmp_path / cache))
                steps = loader(make_steps(processors, run_recipe, rank, 4), 0, 2, workers=0)
                for step, rows in zip(steps, expected, strict=True):
                    assert rows_of(step) == [rows[rank]]
                for thread in threading.enumerate():
                    if thread.name == "onepeace-fetch":  # it would go on in the next cache
                        thread.join()
        assert set(requests.counts.values()) == {1}
        assert 4 <= len(requests.counts) <= 8


def test_cache_too_small_for_the_shards_read_at_a_time(many, processors, caplog):
    train = [{**IMAGES, "shards": "pictures-3.tar.gz"}]
    make_steps(processors, recipe(many, train, batch_size=4)).open(0)
    assert caplog.text == ""
    small_cache = recipe(many, train, {"cache_gigabytes": 1e-5}, batch_size=4)
    make_steps(processors, small_cache).open(0)
    assert "data.cache_gigabytes is 1e-05, too little for the shards" in caplog.text
