import os
import pickle
import re
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from support.checkpoints import read_checkpoint
from torch import nn

from onepeace.errors import UserError
from onepeace.train import checkpoint, checkpoint_files
from onepeace.train.checkpoint_files import HEADER, folder_of, folders, step_of, unfinished
from onepeace.train.log import Log, read_log
from onepeace.train.optim import make_optimizer
from onepeace.train.sections import OptimConfig

CURSORS = {"image+text": {"epoch": 1, "shard": 2}}


class Network(nn.Module):
    """Matrices, a scalar, whole numbers, and a layer without gradient."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 8)])
        self.scale = nn.Parameter(torch.rand(()))
        self.unused = nn.Linear(2, 2)
        self.register_buffer("count", torch.tensor([3, 5]))


class Run:
    """A small training with all of a run's state: weights, moments, average."""

    def __init__(self, out, keep=2, optimizer="adamw", device="cpu"):
        self.network = Network().to(device)
        self.device = device
        self.optimizer = make_optimizer(self.network, OptimConfig(name=optimizer))
        self.average = {name: tensor.detach().clone() for name, tensor in self.network.named_parameters()}
        state = checkpoint.State(self.network, self.optimizer, self.average)
        self.checkpoints = checkpoint.Checkpoints(out, state, keep)

    def step(self):
        self.optimizer.zero_grad()
        (self.network.blocks[0](torch.randn(16, 4, device=self.device)) * self.network.scale).sum().backward()
        self.optimizer.step()
        self.network.count += 1
        for tensor in self.average.values():
            tensor.add_(torch.randn_like(tensor))

    def begin(self, step):
        self.checkpoints.save(step, "seed: 1\n", CURSORS)

    def save(self, step):
        self.begin(step)
        self.checkpoints.wait()
        return folder_of(self.checkpoints.out, step)

    def tensors(self):
        parts = self.checkpoints.state.tensors()
        return {f"{part}.{name}": parts[part][name].detach().clone() for part in parts for name in parts[part]}


@pytest.fixture
def run(tmp_path):
    made = Run(tmp_path)
    made.step()
    return made


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def refuse_to_unpickle(*args, **kwargs):
    raise AssertionError("something was unpickled")


def test_saved_state_is_restored_and_nothing_is_unpickled(run, tmp_path, monkeypatch):
    folder = run.save(4)
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse_to_unpickle)
    other = Run(tmp_path)
    header = other.checkpoints.restore(folder)
    assert (header.step, header.recipe, header.cursors) == (4, "seed: 1\n", CURSORS)
    assert_equal(other.tensors(), run.tensors())
    assert "optimizer.unused.weight.step" not in other.tensors()
    assert "optimizer.scale.exp_avg" in other.tensors()


@pytest.mark.gpu
def test_steps_of_a_gpu_during_the_writing_do_not_change_what_is_written(disk, tmp_path):
    """The state is copied into pinned memory, without waiting for each tensor."""
    run = Run(tmp_path, device="cuda")
    run.step()
    before = run.tensors()
    run.begin(1)
    run.step()
    disk.free.set()
    run.checkpoints.wait()
    other = Run(tmp_path, device="cuda")
    other.checkpoints.restore(folder_of(tmp_path, 1))
    assert_equal(other.tensors(), before)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "lamb", "adafactorbv"])
def test_optimizer_goes_on_to_the_bit(tmp_path, optimizer):
    run = Run(tmp_path, optimizer=optimizer)
    for _ in range(3):
        run.step()
    folder = run.save(3)
    other = Run(tmp_path, optimizer=optimizer)
    other.checkpoints.restore(folder)
    for continued in (run, other):
        torch.manual_seed(1)
        for _ in range(3):
            continued.step()
    assert_equal(other.tensors(), run.tensors())


def test_numbers_of_an_optimizer_are_restored(run, tmp_path):
    """Some optimizers count in numbers instead of tensors, in their groups or in the state of a parameter."""
    run.optimizer.param_groups[0]["updates"] = 7
    run.optimizer.state[run.network.scale]["estimate"] = 0.5
    folder = run.save(1)
    other = Run(tmp_path)
    other.checkpoints.restore(folder)
    assert other.optimizer.param_groups[0]["updates"] == 7
    assert other.optimizer.state[other.network.scale]["estimate"] == 0.5


def test_checkpoint_of_other_tensors_is_refused(run, tmp_path):
    folder = run.save(1)
    other = Run(tmp_path)
    del other.average["scale"]
    with pytest.raises(UserError, match=r"has ema\.scale, which this run has not"):
        other.checkpoints.restore(folder)
    other = Run(tmp_path)
    other.average["new"] = torch.zeros(2)
    with pytest.raises(UserError, match="lacks tensors of this run"):
        other.checkpoints.restore(folder)


# Writing while the training goes on


class Disk:
    """Writes files only when it is let."""

    def __init__(self, monkeypatch):
        self.free = threading.Event()
        self.error = None
        self.write = safetensors.torch.save_file
        monkeypatch.setattr(safetensors.torch, "save_file", self)

    def __call__(self, tensors, path, metadata):
        assert self.free.wait(60)
        if self.error is not None:
            raise self.error
        self.write(tensors, path, metadata)


@pytest.fixture
def disk(monkeypatch):
    made = Disk(monkeypatch)
    yield made
    made.free.set()


def test_steps_during_the_writing_do_not_change_what_is_written(run, disk, tmp_path):
    before = run.tensors()
    run.begin(1)
    run.step()
    assert folders(tmp_path) == []
    assert not run.checkpoints.has_failed()
    disk.free.set()
    run.checkpoints.wait()
    saved = read_checkpoint(folder_of(tmp_path, 1))
    assert torch.equal(saved.model["blocks.0.weight"], before["model.blocks.0.weight"])
    assert not torch.equal(saved.model["blocks.0.weight"], run.network.blocks[0].weight)
    assert torch.equal(saved.optimizer["scale"]["exp_avg"], before["optimizer.scale.exp_avg"])


def test_second_checkpoint_waits_for_the_first(run, disk, tmp_path):
    run.begin(1)
    second = threading.Thread(target=run.begin, args=(2,))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    disk.free.set()
    second.join()
    assert step_of(folders(tmp_path)[0]) == 1
    run.checkpoints.wait()
    assert [step_of(folder) for folder in folders(tmp_path)] == [1, 2]


def test_failed_writing_is_one_error_and_leaves_what_was_there(run, disk, tmp_path):
    disk.free.set()
    run.save(1)
    disk.error = OSError(28, "No space left on device")
    run.begin(2)
    with pytest.raises(UserError, match=r"checkpoint of step 2 cannot be written .*No space left.*; make room"):
        run.checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    disk.error = None
    run.save(3)
    assert [step_of(folder) for folder in folders(tmp_path)] == [1, 3]


def test_failed_renaming_leaves_what_was_there(run, tmp_path, monkeypatch):
    run.save(1)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match="No space left"):
        run.save(2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def set_clock(monkeypatch, *times):
    """Seconds at which a checkpoint begins and is copied, and at which it is asked whether another is due."""
    clock = iter(times)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: next(clock)))


@pytest.mark.parametrize(
    ("minutes", "pause", "seconds", "is_due"),
    [(5, 1.0, 299, False), (5, 1.0, 301, True), (5, 10.0, 499, False), (5, 10.0, 501, True), (0, 1.0, 9999, False)],
)
def test_checkpoints_by_time_take_two_hundredths_of_it(run, monkeypatch, minutes, pause, seconds, is_due):
    set_clock(monkeypatch, 0.0, pause, pause + seconds)
    run.save(1)
    assert run.checkpoints.is_due(minutes) is is_due


def test_no_checkpoint_is_due_while_one_is_written(run, disk, monkeypatch):
    set_clock(monkeypatch, 0.0, 1.0, 1000.0)
    run.begin(1)
    assert not run.checkpoints.is_due(minutes=5)
    disk.free.set()
    run.checkpoints.wait()
    assert run.checkpoints.is_due(minutes=5)


# Damage


def cut(folder):
    (path,) = folder.glob("*.safetensors")
    os.truncate(path, path.stat().st_size - 100)


def empty(folder):
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(b"")


def lose_a_file(folder):
    (path,) = folder.glob("*.safetensors")
    path.unlink()


def lose_the_header(folder):
    (folder / HEADER).unlink()


def change_the_step(folder):
    path = folder / HEADER
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


def rename(folder):
    folder.rename(folder_of(folder.parent, 3))


def add_a_file(folder):
    shutil.copy(next(folder_of(folder.parent, 1).glob("*.safetensors")), folder / "more.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"step-00000002/part-00001\.safetensors: damaged"),
        (empty, r"step-00000002/part-00001\.safetensors: damaged"),
        (lose_a_file, r"step-00000002/part-00001\.safetensors: cannot be read"),
        (lose_the_header, "step-00000002: not a complete checkpoint"),
        (change_the_step, "step-00000002: not a complete checkpoint .*was changed"),
        (rename, "step-00000003: is the checkpoint of step 2, renamed"),
        (add_a_file, r"step-00000002/more\.safetensors: does not belong to this checkpoint"),
    ],
)
def test_damaged_last_checkpoint_falls_back_on_the_one_before(run, tmp_path, caplog, damage, message):
    for step in (1, 2):
        folder = run.save(step)
    assert checkpoint.newest(tmp_path) == folder
    damage(folder)
    assert checkpoint.newest(tmp_path) == folder_of(tmp_path, 1)
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert re.search(message, warning)
    assert warning.endswith("; going on from the one before")


def test_flipped_bits_are_refused_or_change_nothing(run, tmp_path):
    folder = run.save(2)
    other = Run(tmp_path)
    rng = np.random.default_rng(0)
    refused = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for bit in rng.integers(8 * len(content), size=100):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(damaged)
            if checkpoint.newest(tmp_path) is None:
                refused += 1
            else:
                assert other.checkpoints.restore(folder) == checkpoint_files.read_header(folder)
                assert_equal(other.tensors(), run.tensors())
        path.write_bytes(content)
    assert refused > 180
    assert checkpoint.newest(tmp_path) == folder


def test_checkpoint_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    (tmp_path / "step-00000002.safetensors").touch()
    with pytest.raises(UserError, match=r"step-00000002\.safetensors: a checkpoint of an earlier version.*; give run"):
        checkpoint.newest(tmp_path)


# What is kept


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("step", [150, 200])
def test_broken_checkpoint_does_not_take_the_place_of_a_good_one(tmp_path, keep, step):
    run = Run(tmp_path, keep=9)
    run.step()
    for earlier in (50, 100):
        run.save(earlier)
    cut(run.save(200))
    assert step_of(checkpoint.newest(tmp_path)) == 100
    run.checkpoints.keep = keep
    written = run.save(step)
    good = [folder_of(tmp_path, 100), written]
    assert folders(tmp_path) == good[-keep:]
    assert checkpoint.newest(tmp_path) == written


def test_half_written_and_half_removed_checkpoints_are_removed(run, tmp_path, monkeypatch):
    for step in (1, 2):
        folder = run.save(step)
    shutil.copytree(folder, unfinished(folder_of(tmp_path, 3)))

    def killed(path, ignore_errors=False):
        if ignore_errors:  # what an earlier removal left
            return
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint_files.remove(folder)
    assert checkpoint.newest(tmp_path) == folder_of(tmp_path, 1)
    checkpoint_files.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


# The log


def test_log_lines_after_the_resumed_step_are_cut_away(tmp_path):
    log = Log(tmp_path, steps=100)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 7})
    with log.path.open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    log = Log(tmp_path, step=20)
    log.write(25, {"loss": 1.0})
    records = read_log(log.path)
    assert [record["step"] for record in records] == [10, 20, 25]
    assert records[1] == {"step": 20, "loss": 20 / 7}
