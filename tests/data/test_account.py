"""What a run loses of its data: counted over all processes and the whole run, and too much is an error."""

import json
import pickle
import shutil

import pytest
from support.batches import IMAGES, make_steps, pictures, recipe
from support.small_shards import write_tar

from onepeace.data import shard as shard_module
from onepeace.data.source import Lost
from onepeace.data.steps import Account
from onepeace.errors import UserError


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


def accounts_after(steps_of_processes, numbers, cursors=None):
    """The accounts of processes after these steps."""
    accounts = []
    for steps in steps_of_processes:
        account = Account(steps, cursors or {})
        for number in numbers:
            account.add(steps[number])
        accounts.append(account)
    return accounts


def exchange(accounts):
    told = pickle.loads(pickle.dumps([account.own() for account in accounts]))  # noqa: S301
    for account in accounts:
        account.merge(told)


# Broken samples


def test_broken_samples_of_all_processes_are_counted_and_named(tmp_path, processors, caplog):
    write(tmp_path, [4, 4, 4, 4], incomplete=[1, 6, 9, 14, 15])
    processes = start(tmp_path, processors, world_size=2, broken_limit=0.5)
    accounts = accounts_after(processes, range(4))
    exchange(accounts)
    for account in accounts:
        (losses,) = account.losses
        assert losses.drawn - losses.broken == 16
        assert losses.broken >= 5
    assert "lost and replaced by others: " in caplog.text
    assert "has no image file" in caplog.text
    lines = len(caplog.records)
    for account, steps in zip(accounts, processes, strict=True):
        for number in range(4):
            account.add(steps[number])
    exchange(accounts)
    assert len(caplog.records) == lines  # a process names a sample once


@pytest.mark.parametrize("world_size", [1, 2])
def test_run_stops_in_all_processes_when_too_much_is_broken(tmp_path, processors, world_size):
    write(tmp_path, [20, 20, 20, 20], incomplete=range(0, 80, 4))
    accounts = accounts_after(start(tmp_path, processors, world_size), range(20))
    with pytest.raises(UserError, match=r"^pictures-\*: 0 of 4 shards .* and \d+ of \d+ samples .*broken_limit$"):
        exchange(accounts)
    lenient = start(tmp_path, processors, broken_limit=0.35)
    exchange(accounts_after(lenient, range(20)))


def test_counts_go_on_after_a_checkpoint(tmp_path, processors):
    """A run of short lives, each too short to reach the limit, stops as one of a long life."""
    write(tmp_path, [40, 40], incomplete=range(0, 80, 5))

    def live(first, cursors):
        (account,) = accounts_after(start(tmp_path, processors), range(first, first + 4), cursors)
        exchange([account])
        return json.loads(json.dumps(account.state()))

    def live_on():
        cursors = {}
        for first in range(0, 40, 4):
            cursors = live(first, cursors)

    live(0, {})
    with pytest.raises(UserError, match=r"of \d+ samples are broken"):
        live_on()


# Shards


def test_one_dead_shard_of_many_does_not_stop_a_run(tmp_path, processors, caplog):
    """However few samples have been drawn, and again after it was resumed."""
    write(tmp_path, [12] * 64)
    (tmp_path / "pictures-7.tar").write_bytes(b"")
    for first in (0, 10):
        (account,) = accounts_after(start(tmp_path, processors), range(first, first + 2))
        exchange([account])
        assert account.lost_shards == 1
    assert "lost and replaced by others: " in caplog.text
    (tmp_path / "pictures-9.tar").write_bytes(b"")
    accounts = accounts_after(start(tmp_path, processors), [0])
    with pytest.raises(UserError, match=r"2 of 64 shards cannot be read.*pictures-\d\.tar: is not a tar"):
        exchange(accounts)


def test_shard_that_could_not_be_read_long_ago_does_not_count(tmp_path, processors):
    write(tmp_path, [12] * 4)
    (account,) = accounts_after(start(tmp_path, processors), [0])
    losses = account.losses[0]
    for epoch in range(5):
        losses.add_unreadable([Lost(0, "", shard=epoch, epoch=epoch)])
    assert losses.unreadable == {3: 3, 4: 4}


def test_lane_that_is_ahead_makes_no_other_shard_forgotten(tmp_path, processors):
    """A lane draws one dead shard after another, and is epochs ahead of the lanes that met one each."""
    write(tmp_path, [12] * 64)
    (account,) = accounts_after(start(tmp_path, processors), [0])
    losses = account.losses[0]
    losses.add_unreadable([Lost(0, "", shard=number, epoch=max(number - 29, 0)) for number in range(32)])
    assert len(losses.unreadable) == 32


def test_shard_that_goes_during_a_run_counts_with_all_its_samples(tmp_path, processors):
    write(tmp_path, [12, 12, 12, 12])
    (steps,) = start(tmp_path, processors)
    (account,) = accounts_after([steps], [0])
    exchange([account])
    (tmp_path / "pictures-2.tar").unlink()
    shard_module.forget_open_files()
    step = steps[1]
    assert len(step.batches[0].keys) == 4
    account.add(step)
    with pytest.raises(UserError, match=r"1 of 4 shards cannot be read.*pictures-2\.tar: cannot be read.*12 samples"):
        exchange([account])


def test_shard_that_is_replaced_during_a_run_is_named(tmp_path, processors):
    """Another file with the same places, which a window of the next epoch opens."""
    write(tmp_path, [12])
    (steps,) = start(tmp_path, processors)
    steps[0]
    shutil.copyfile(tmp_path / "pictures-0.tar", tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "pictures-0.tar")
    with pytest.raises(UserError, match=r"no usable sample; .*pictures-0\.tar: has changed during the run"):
        steps[4]


# Agreement


def test_different_shards_of_two_processes_are_refused(tmp_path, processors):
    """Two processes that share a lane, of which one has another shard; tests/train has one with another sample."""
    write(tmp_path / "first", [4, 4])
    write(tmp_path / "second", [4, 4, 4])
    first, _ = start(tmp_path / "first", processors, world_size=2, lanes=1)
    _, second = start(tmp_path / "second", processors, world_size=2, lanes=1)
    with pytest.raises(UserError, match="processes 0 and 1 read different data"):
        exchange(accounts_after([first, second], [0]))
