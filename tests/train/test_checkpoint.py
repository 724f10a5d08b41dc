import os
import pickle
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from support.training import assert_same_tensors
from torch import nn
from torch.distributed.checkpoint import SavePlanner

from onepeace.train import checkpoint
from onepeace.train.checkpoint import HEADER, folder_of, folders, step_of, unfinished
from onepeace.train.checkpoint_storage import Writer
from onepeace.train.logging import Log, read_log
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
        self.out = out
        self.network = Network().to(device)
        self.device = device
        self.optimizer = make_optimizer(self.network, OptimConfig(name=optimizer))
        self.average = {name: tensor.detach().clone() for name, tensor in self.network.named_parameters()}
        state = checkpoint.State(self.network, self.optimizer, self.average)
        self.checkpoints = checkpoint.Checkpoints(out, state, keep)

    def take_step(self):
        self.optimizer.zero_grad()
        outputs = self.network.blocks[0](torch.randn(16, 4, device=self.device))
        (outputs * self.network.scale).sum().backward()
        self.optimizer.step()
        self.network.count += 1
        for tensor in self.average.values():
            tensor.add_(torch.randn_like(tensor))

    def begin(self, step):
        self.checkpoints.save(step, "seed: 1\n", CURSORS)

    def save(self, step):
        self.begin(step)
        self.checkpoints.wait()
        return folder_of(self.out, step)

    def restore(self, folder):
        return self.checkpoints.restore(folder)

    def tensors(self):
        return {name: tensor.detach().clone() for name, tensor in self.checkpoints.state.tensors().items()}


@pytest.fixture
def run(tmp_path):
    """After a step."""
    run = Run(tmp_path)
    run.take_step()
    return run


@pytest.fixture
def other(tmp_path):
    """Another run in the folder, which has not begun."""
    return Run(tmp_path)


def steps_in(out):
    return [step_of(folder) for folder in folders(out)]


# What is saved


def refuse_to_unpickle(*args, **kwargs):
    raise AssertionError("something was unpickled")


def test_saved_state_is_restored(run, other):
    header = other.restore(run.save(4))

    assert (header.step, header.recipe, header.cursors) == (4, "seed: 1\n", CURSORS)
    restored = other.tensors()
    assert_same_tensors(restored, run.tensors())
    assert restored["model.count"].dtype == torch.int64
    assert "optimizer.unused.weight.step" not in restored
    assert "optimizer.scale.exp_avg" in restored


def test_plan_of_an_unchanged_state_is_exchanged_once(run, other, monkeypatch):
    """It names each tensor, which is hundreds of megabytes for hundreds of processes."""
    for name in ("save_plan", "final_save_plan", "all_plans", "global_plan", "metadata"):
        monkeypatch.setattr(SavePlanner, f"_cached_{name}", {})  # torch keeps them for the whole process
    planned = []
    prepare = Writer.prepare_global_plan

    def count(writer, plans):
        planned.append(sum(len(plan.items) for plan in plans))
        return prepare(writer, plans)

    monkeypatch.setattr(Writer, "prepare_global_plan", count)
    run.save(3)
    run.take_step()
    other.restore(run.save(4))

    first, second = planned
    assert first > 10
    assert second == 0
    assert_same_tensors(other.tensors(), run.tensors())


def test_nothing_is_unpickled(run, other, monkeypatch):
    folder = run.save(4)
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse_to_unpickle)

    other.restore(folder)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lamb"])
def test_resumed_optimizer_is_bit_identical(tmp_path, optimizer):
    run = Run(tmp_path, optimizer=optimizer)
    for _ in range(3):
        run.take_step()
    other = Run(tmp_path, optimizer=optimizer)

    other.restore(run.save(3))

    for continued in (run, other):
        torch.manual_seed(1)
        for _ in range(3):
            continued.take_step()
    assert_same_tensors(other.tensors(), run.tensors())


# Writing while the training goes on


class Disk:
    """Writes files only when it is let."""

    def __init__(self, monkeypatch):
        self.is_free = threading.Event()
        self.write = safetensors.torch.save_file
        monkeypatch.setattr(safetensors.torch, "save_file", self)

    def __call__(self, tensors, path, metadata):
        assert self.is_free.wait(60)
        self.write(tensors, path, metadata)


@pytest.fixture
def disk(monkeypatch):
    disk = Disk(monkeypatch)
    yield disk
    disk.is_free.set()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_during_writing_change_no_checkpoint(disk, tmp_path, device):
    """From a GPU the state is copied into pinned memory, without waiting for each tensor."""
    run = Run(tmp_path, device=device)
    run.take_step()
    before = run.tensors()

    run.begin(1)
    run.take_step()
    disk.is_free.set()
    run.checkpoints.wait()

    other = Run(tmp_path, device=device)
    other.restore(folder_of(tmp_path, 1))
    assert_same_tensors(other.tensors(), before)
    assert not torch.equal(run.tensors()["model.blocks.0.weight"], before["model.blocks.0.weight"])


def test_second_checkpoint_waits_for_first(run, disk, tmp_path):
    run.begin(1)
    second = threading.Thread(target=run.begin, args=(2,))
    second.start()
    second.join(0.1)
    assert second.is_alive()

    disk.is_free.set()
    second.join()
    assert steps_in(tmp_path)[0] == 1
    run.checkpoints.wait()
    assert steps_in(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("minutes", "pause", "seconds", "is_due"),
    [
        (5, 1.0, 299, False),
        (5, 1.0, 301, True),
        (5, 10.0, 499, False),
        (5, 10.0, 501, True),
        (0, 1.0, 9999, False),
    ],
)
def test_checkpoints_by_time_take_a_fiftieth_of_it(run, monkeypatch, minutes, pause, seconds, is_due):
    """The clock is read when a checkpoint begins, when it is copied, and when another may be due."""
    clock = iter([0.0, pause, pause + seconds])
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=clock.__next__))

    run.save(1)

    assert run.checkpoints.is_due(minutes) is is_due


# Damage


def part_of(folder):
    (path,) = folder.glob("*.safetensors")
    return path


def cut(folder):
    path = part_of(folder)
    os.truncate(path, path.stat().st_size - 100)


def lose_the_header(folder):
    (folder / HEADER).unlink()


def change_the_step(folder):
    path = folder / HEADER
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


def add_a_file(folder):
    shutil.copy(part_of(folder_of(folder.parent, 1)), folder / "more.safetensors")


@pytest.mark.parametrize(
    ("damage", "path", "reason"),
    [
        (cut, "step-00000002/part-00001.safetensors", "damaged"),
        (lose_the_header, "step-00000002", "not a complete checkpoint"),
        (change_the_step, "step-00000002", "was changed"),
        (add_a_file, "step-00000002/more.safetensors", "does not belong"),
    ],
)
def test_damaged_checkpoint_falls_back_on_one_before(run, tmp_path, caplog, damage, path, reason):
    first = run.save(1)
    second = run.save(2)
    assert checkpoint.newest(tmp_path) == second

    damage(second)

    assert checkpoint.newest(tmp_path) == first
    (warning,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert f"{path}: " in warning
    assert reason in warning


def is_refused_or_as_saved(run, other, folder):
    """True if it is refused; otherwise it must restore the state of the run."""
    if checkpoint.newest(folder.parent) is None:
        return True
    assert other.restore(folder) == checkpoint.read_header(folder)
    assert_same_tensors(other.tensors(), run.tensors())
    return False


def test_flipped_bits_are_refused_or_change_nothing(run, other, tmp_path):
    folder = run.save(2)
    rng = np.random.default_rng(0)
    num_refused = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for bit in rng.integers(8 * len(content), size=100):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(damaged)
            num_refused += is_refused_or_as_saved(run, other, folder)
        path.write_bytes(content)

    assert num_refused > 180
    assert checkpoint.newest(tmp_path) == folder


# What is kept


@pytest.mark.parametrize(("keep", "step"), [(1, 200), (2, 150)])
def test_broken_checkpoint_takes_no_place_of_whole_one(tmp_path, keep, step):
    run = Run(tmp_path, keep=9)
    run.take_step()
    run.save(50)
    hundredth = run.save(100)
    cut(run.save(200))
    assert checkpoint.newest(tmp_path) == hundredth

    run.checkpoints.keep = keep
    written = run.save(step)

    assert folders(tmp_path) == [hundredth, written][-keep:]
    assert checkpoint.newest(tmp_path) == written


def test_half_written_and_half_removed_checkpoints_are_removed(run, tmp_path, monkeypatch):
    first = run.save(1)
    second = run.save(2)
    shutil.copytree(second, unfinished(folder_of(tmp_path, 3)))

    def be_killed(path, ignore_errors=False):
        if not ignore_errors:  # else it is of what an earlier removal left
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", be_killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.remove(second)
    assert checkpoint.newest(tmp_path) == first

    checkpoint.remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [first]


# The log


def test_log_lines_after_resumed_step_are_cut_away(tmp_path):
    log = Log(tmp_path, steps=100)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 7})
    with log.path.open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing

    Log(tmp_path, step=20).write(25, {"loss": 1.0})

    lines = read_log(log.path)
    assert [line["step"] for line in lines] == [10, 20, 25]
    assert lines[1] == {"step": 20, "loss": 20 / 7}
