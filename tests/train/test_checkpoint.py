import os

import pytest
import torch
from torch import nn

from onepeace.errors import UserError
from onepeace.train import checkpoint
from onepeace.train.log import Log, read_log
from onepeace.train.optim import make_optimizer
from onepeace.train.sections import OptimConfig


class Run:
    """A small training with all of a run's state: weights, moments, average."""

    def __init__(self):
        self.model = nn.Linear(4, 8)
        self.optimizer = make_optimizer(self.model, OptimConfig())
        self.model(torch.randn(16, 4)).sum().backward()
        self.optimizer.step()

    def save(self, folder, step):
        model, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        ema = {name: tensor.clone() for name, tensor in model.items()}
        state = checkpoint.Checkpoint(step, model, optimizer, ema, recipe="seed: 1\n", extra={"seen": [1, 2]})
        return checkpoint.save(folder, state)


def test_what_was_saved_is_read(tmp_path):
    run = Run()
    run.save(tmp_path, 4)
    saved = checkpoint.newest(tmp_path)
    assert (saved.step, saved.recipe, saved.extra) == (4, "seed: 1\n", {"seen": [1, 2]})
    for i, state in run.optimizer.state_dict()["state"].items():
        assert all(torch.equal(saved.optimizer["state"][i][name], tensor) for name, tensor in state.items())
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(saved.model[name], tensor)
        assert torch.equal(saved.ema[name], tensor)


@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten"])
def test_damaged_last_checkpoint_falls_back_on_the_one_before(tmp_path, caplog, damage):
    run = Run()
    for step in (1, 2):
        path = run.save(tmp_path, step)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-100], "emptied": b"", "overwritten": b"x" * len(data)}[damage])
    assert checkpoint.newest(tmp_path).step == 1
    assert "step-00000002" in caplog.text
    assert "going on from the one before" in caplog.text
    with pytest.raises(UserError, match=r"step-00000002.*not a complete checkpoint"):
        checkpoint.load(path)


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("step", [150, 200])
def test_a_broken_checkpoint_does_not_take_the_place_of_a_good_one(tmp_path, keep, step):
    run = Run()
    for earlier in (50, 100):
        run.save(tmp_path, earlier)
    broken = run.save(tmp_path, 200)
    broken.write_bytes(broken.read_bytes()[:-100])
    assert checkpoint.newest(tmp_path).step == 100
    written = run.save(tmp_path, step)
    checkpoint.prune(written, keep)
    good = [tmp_path / "step-00000100.safetensors", written]
    assert checkpoint.files(tmp_path) == good[-keep:]


def test_interrupted_writing_leaves_what_was_there(tmp_path, monkeypatch):
    run = Run()
    run.save(tmp_path, 1)
    (tmp_path / ".step-00000002.safetensors.7.tmp").write_bytes(b"half of a checkpoint")
    assert checkpoint.newest(tmp_path).step == 1

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        run.save(tmp_path, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]


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
