"""What processes tell each other about their data: broken samples, and that their orders agree."""

import json
import shutil

import numpy as np
import pytest
from support.batches import IMAGES, make_steps, pictures, recipe
from support.small_shards import write_tar

from onepeace.data import shard as shard_module
from onepeace.data.broken import Broken
from onepeace.data.report import DataReport, check_agreement
from onepeace.errors import UserError


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(shard_module, "READ_PAUSES", (0.0, 0.0))
    shard_module.forget_open_files()


def write(folder, counts, incomplete=()):
    """Shards 0, 1, ... with so many pictures; of the numbers in ``incomplete`` there is only the caption."""
    first = 0
    for shard, count in enumerate(counts):
        members = pictures(count, first=first)
        for number in incomplete:
            members.pop(f"p{number}.png", None)
        write_tar(folder / f"pictures-{shard}.tar", members)
        first += count


def start(folder, processors, world_size=1, **data):
    """The steps of each process of a run with batches of four."""
    run_recipe = recipe(folder, [IMAGES], data, batch_size=4)
    return [make_steps(processors, run_recipe, rank, world_size) for rank in range(world_size)]


def reports_after(steps_of_processes, numbers):
    """The reports of processes after these steps."""
    reports = []
    for steps in steps_of_processes:
        report = DataReport(steps)
        for number in numbers:
            report.add(steps[number])
        reports.append(report)
    return reports


def exchanged(reports):
    """What every process receives from all of them."""
    numbers = np.stack([report.numbers() for report in reports])
    news = b"".join(report.news() for report in reports)
    return numbers, news


def exchange(reports):
    numbers, news = exchanged(reports)
    for report in reports:
        report.merge(numbers, news)


# Broken samples


def test_broken_samples_are_exchanged_and_named_once(tmp_path, processors, caplog):
    write(tmp_path, [4, 4, 4, 4], incomplete=[1, 6, 9, 14, 15])
    processes = start(tmp_path, processors, world_size=2)
    reports = reports_after(processes, range(4))
    exchange(reports)
    for report in reports:
        (count,) = report.counts
        keys = set.union(*count.keys.values())
        assert keys == {"p1", "p6", "p9", "p14", "p15"}
    assert caplog.text.count("broken and replaced by others: ") == 6  # three lines of each process
    assert caplog.text.count("2 more are broken") == 2
    for report, steps in zip(reports, processes, strict=True):
        report.add(steps[5])
        assert report.news() == b""


@pytest.mark.parametrize("world_size", [1, 2])
def test_run_stops_in_all_processes_when_too_much_is_broken(tmp_path, processors, world_size):
    write(tmp_path, [11, 11, 11, 11], incomplete=range(0, 44, 4))
    reports = reports_after(start(tmp_path, processors, world_size), range(20))
    numbers, news = exchanged(reports)
    for report in reports:
        with pytest.raises(UserError, match=r"^pictures-\*: 11 broken and 33 usable .*broken_limit$"):
            report.merge(numbers, news)
    lenient = start(tmp_path, processors, broken_limit=0.3)
    exchange(reports_after(lenient, range(20)))


def test_shard_that_cannot_be_opened_counts_with_all_its_samples(tmp_path, processors):
    write(tmp_path, [12, 12, 12, 12])
    (tmp_path / "pictures-2.tar").unlink()
    (tmp_path / "pictures-2.tar").mkdir()
    reports = reports_after(start(tmp_path, processors, world_size=2), range(2))
    with pytest.raises(UserError, match=r"12 broken and 36 usable .*pictures-2\.tar: it is not a regular file"):
        exchange(reports)


def test_shard_that_goes_during_a_run_counts_with_all_its_samples(tmp_path, processors):
    write(tmp_path, [12, 12, 12, 12])
    (steps,) = start(tmp_path, processors)
    (report,) = reports_after([steps], [0])
    exchange([report])
    (tmp_path / "pictures-2.tar").unlink()
    shard_module.forget_open_files()
    step = steps[1]
    assert len(step.batches[0].keys) == 4
    report.add(step)
    with pytest.raises(UserError, match=r"12 broken and 36 usable .*pictures-2\.tar: cannot be read"):
        exchange([report])


def test_shard_that_is_replaced_during_a_run_is_named(tmp_path, processors):
    """Another file with the same places, which a window of the next epoch opens."""
    write(tmp_path, [12])
    (steps,) = start(tmp_path, processors)
    steps[0]
    shutil.copyfile(tmp_path / "pictures-0.tar", tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "pictures-0.tar")
    with pytest.raises(UserError, match=r"no usable sample; .*pictures-0\.tar: has changed during the run"):
        steps[4]


COUNTS_OF_LISTED = slice(-2, None)
"""Columns of `DataReport.numbers`: how many samples of the one source the windows list, and of how many shards."""


def merge_broken_while_no_window_is_open(folder, processors, broken_limit):
    """A report that has seen the 604 samples of a source learns of 11 that are broken when no window lists any."""
    write(folder, [600, 4])
    processes = start(folder, processors, broken_limit=broken_limit)
    (report,) = reports_after(processes, [0])
    numbers, no_news = exchanged([report])
    report.merge(numbers, no_news)

    news = b""
    for number in range(11):
        broken = Broken(source=0, shard="pictures-0.tar", key=f"p{number}", reason="")
        news += json.dumps(broken).encode() + b"\n"
    numbers[:, COUNTS_OF_LISTED] = 0
    report.merge(numbers, news)


def test_limit_is_a_share_of_samples_listed_before(tmp_path, processors):
    with pytest.raises(UserError, match="11 broken and 593 usable"):
        merge_broken_while_no_window_is_open(tmp_path, processors, broken_limit=0.01)


def test_limit_above_share_of_samples_listed_before(tmp_path, processors):
    merge_broken_while_no_window_is_open(tmp_path, processors, broken_limit=0.02)


def test_news_are_plain_json(tmp_path, processors):
    write(tmp_path, [4], incomplete=[1])
    (report,) = reports_after(start(tmp_path, processors), [0])
    source, shard, key, reason, samples = json.loads(report.news())
    assert (source, key, samples) == (0, "p1", 1)
    assert reason == f"{shard}: p1 has no image file"


# Agreement


def test_different_shards_of_two_processes_are_refused(tmp_path, processors):
    """Two processes that share a lane, each with shards of its own."""
    shards_of_first = tmp_path / "first"
    shards_of_second = tmp_path / "second"
    write(shards_of_first, [4, 4])
    write(shards_of_second, [4, 3])
    first, _ = start(shards_of_first, processors, world_size=2, lanes=1)
    _, second = start(shards_of_second, processors, world_size=2, lanes=1)
    with pytest.raises(UserError, match=r"0 and 1 .* lane 0 of image\+text"):
        exchange(reports_after([first, second], [0]))
    write(shards_of_second, [4, 4, 4])
    _, second = start(shards_of_second, processors, world_size=2, lanes=1)
    with pytest.raises(UserError, match=r"0 and 1 .* list of shards of image\+text"):
        exchange(reports_after([first, second], [0]))


def test_agreement_is_between_those_that_read():
    names = ["first", "second"]
    digests = np.array([[1, 0], [1, 5], [0, 5]])
    check_agreement(digests, names)
    digests[2, 1] = 6
    with pytest.raises(UserError, match=r"1 and 2 .* second"):
        check_agreement(digests, names)
