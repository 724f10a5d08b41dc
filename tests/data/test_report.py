"""What processes tell each other about their data: broken samples, and that their orders agree."""

import json

import numpy as np
import pytest
from support.batches import IMAGES, make_steps, pictures, recipe
from support.small_shards import write_tar

from onepeace.data import shard as shard_module
from onepeace.data.report import DataReport, check_agreement
from onepeace.errors import UserError


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(shard_module, "READ_PAUSES", (0.0, 0.0))
    shard_module.forget_open_files()


def write(folder, counts, bad=(), first=0):
    """Shards 0, 1, ... with so many pictures; of those in ``bad`` there is only the caption."""
    for number, count in enumerate(counts):
        members = pictures(count, first=first)
        first += count
        write_tar(folder / f"pictures-{number}.tar", {k: v for k, v in members.items() if k not in bad})


def reports_after(steps, numbers):
    """The reports of processes after these steps."""
    reports = [DataReport(of_process) for of_process in steps]
    for report, of_process in zip(reports, steps, strict=True):
        for number in numbers:
            report.add(of_process[number])
    return reports


def exchange(reports):
    numbers = np.stack([report.numbers() for report in reports])
    news = b"".join(report.news() for report in reports)
    for report in reports:
        report.merge(numbers, news)


def processes(processors, wanted, world_size):
    return [make_steps(processors, wanted, rank, world_size) for rank in range(world_size)]


def test_broken_samples_of_all_processes_are_known_to_all_and_named_once(tmp_path, processors, caplog):
    write(tmp_path, [4, 4, 4, 4], bad={"p1.png", "p6.png", "p9.png", "p14.png", "p15.png"})
    steps = processes(processors, recipe(tmp_path, [IMAGES], batch_size=4), 2)
    reports = reports_after(steps, range(4))
    exchange(reports)
    for report in reports:
        (count,) = report.counts
        assert {key for _, key in count.samples} == {"p1", "p6", "p9", "p14", "p15"}
    assert caplog.text.count("replaced by others") == 6  # three lines of each process
    assert caplog.text.count("and 2 more") == 2
    for report, of_process in zip(reports, steps, strict=True):
        report.add(of_process[5])
        assert report.news() == b""


@pytest.mark.parametrize("world_size", [1, 2])
def test_run_stops_in_all_processes_when_too_much_is_broken(tmp_path, processors, world_size):
    bad = {f"p{i}.png" for i in range(0, 44, 4)}
    write(tmp_path, [11, 11, 11, 11], bad=bad)
    wanted = recipe(tmp_path, [IMAGES], batch_size=4)
    reports = reports_after(processes(processors, wanted, world_size), range(20))
    numbers = np.stack([report.numbers() for report in reports])
    news = b"".join(report.news() for report in reports)
    for report in reports:
        with pytest.raises(UserError, match=r"^pictures-\*: 11 broken and 33 usable .*broken_limit$"):
            report.merge(numbers, news)
    exchange(reports_after(processes(processors, recipe(tmp_path, [IMAGES], {"broken_limit": 0.3}), 1), range(20)))


def test_shard_that_cannot_be_opened_counts_with_all_its_samples(tmp_path, processors):
    write(tmp_path, [12, 12, 12, 12])
    (tmp_path / "pictures-2.tar").unlink()
    (tmp_path / "pictures-2.tar").mkdir()
    reports = reports_after(processes(processors, recipe(tmp_path, [IMAGES], batch_size=4), 2), range(2))
    with pytest.raises(UserError, match=r"12 broken and 36 usable .*pictures-2\.tar: it is not a regular file"):
        exchange(reports)


def test_shard_that_goes_during_a_run_counts_with_all_its_samples(tmp_path, processors):
    write(tmp_path, [12, 12, 12, 12])
    (steps,) = processes(processors, recipe(tmp_path, [IMAGES], batch_size=4), 1)
    report = DataReport(steps)
    report.add(steps[0])
    exchange([report])
    (tmp_path / "pictures-2.tar").unlink()
    shard_module.forget_open_files()
    made = steps[1]
    assert len(made.batches[0].keys) == 4
    report.add(made)
    with pytest.raises(UserError, match=r"12 broken and 36 usable .*pictures-2\.tar: cannot be read"):
        exchange([report])


def test_shard_that_is_replaced_during_a_run_is_named(tmp_path, processors):
    """Another file with the same places, which a window of the next epoch opens."""
    write(tmp_path, [12])
    (steps,) = processes(processors, recipe(tmp_path, [IMAGES], batch_size=4), 1)
    steps[0]
    content = (tmp_path / "pictures-0.tar").read_bytes()
    (tmp_path / "new").write_bytes(content)
    (tmp_path / "new").replace(tmp_path / "pictures-0.tar")
    with pytest.raises(UserError, match=r"no usable sample; .*pictures-0\.tar: has changed during the run"):
        steps[4]


def test_processes_that_read_other_shards_are_told(tmp_path, processors):
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder, last in zip(folders, (4, 3), strict=True):
        write(folder, [4, last])
    # One lane, which both processes share.
    steps = [
        make_steps(processors, recipe(folder, [IMAGES], {"lanes": 1}), rank, 2) for rank, folder in enumerate(folders)
    ]
    with pytest.raises(UserError, match=r"processes 0 and 1 do not agree on lane 0 of image\+text"):
        exchange(reports_after(steps, [0]))
    write(folders[1], [4, 4, 4])
    steps = [make_steps(processors, recipe(folder, [IMAGES]), i, 2) for i, folder in enumerate(folders)]
    with pytest.raises(UserError, match=r"processes 0 and 1 do not agree on the list of shards of image\+text"):
        exchange(reports_after(steps, [0]))


def test_agreement_is_between_those_that_read():
    names = ["first", "second"]
    check_agreement(np.array([[1, 0], [1, 5], [0, 5]]), names)
    with pytest.raises(UserError, match="processes 1 and 2 do not agree on second"):
        check_agreement(np.array([[1, 0], [1, 5], [0, 6]]), names)


def test_news_are_plain_json(tmp_path, processors):
    write(tmp_path, [4], bad={"p1.png"})
    (report,) = reports_after(processes(processors, recipe(tmp_path, [IMAGES]), 1), [0])
    source, shard, key, reason, samples = json.loads(report.news())
    assert (source, key, samples) == (0, "p1", 1)
    assert reason == f"{shard}: p1 has no image file"
