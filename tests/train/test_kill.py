"""A run that is killed, stopped, cut off or fed with nonsense goes on as if nothing had been, or says what is wrong."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from support.checkpoints import read_newest
from support.processes import preload, train
from support.training import DENOISING, MODEL, assert_same_weights, logged, make_recipe, source

from onepeace import cli
from onepeace.config import write_config
from onepeace.data.batch import Batch
from onepeace.data.source import read_source
from onepeace.data.write import new_shards
from onepeace.errors import UserError
from onepeace.train import checkpoint, trainer
from onepeace.train.checkpoint import folders, step_of
from onepeace.train.logging import Log, read_log
from onepeace.train.recipe import read_recipe
from onepeace.train.step import Stepper

resource = pytest.importorskip("resource", reason="needs the signals and limits of POSIX")

STEPS = 12
RUN = {"batch_size": 4, "log_every": 1}


@pytest.fixture(scope="module")
def parts(root, tmp_path_factory):
    """The squares in four shards."""
    folder = tmp_path_factory.mktemp("parts")
    with new_shards(folder, "squares", max_bytes=45_000) as shards:
        for sample in read_source("squares.tar", ("image", "text"), root):
            shards.write(sample.key, {"png": sample.inputs["image"]}, sample.captions)
    return folder


def random_recipe(root, out):
    """Uses all the chance there is: drop path, augmentation, masks; and averaged weights, a worker; and windows of two
    shards."""
    return make_recipe(
        root,
        out,
        STEPS,
        model={**MODEL, "drop_path": 0.3},
        data={
            "train": [source(shards="squares-*.tar")],
            "augment": {"image": {"crop_scale": [0.5, 1.0], "flip": True, "color": 0.2}},
            "shuffle_buffer": 30,
        },
        run={"batch_size": 8, "workers": 1, "log_every": 1, "save_every": 3, "ema": 0.9},
        **DENOISING,
    )


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """Folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    trainer.train(random_recipe(parts, out))
    return out


@pytest.fixture
def out(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def recipe_file(tmp_path):
    return tmp_path / "recipe.yaml"


def assert_same_run(out, whole):
    assert logged(out) == logged(whole)
    assert_same_weights(out / "model", whole / "model")


# Signals


def forkserver():
    preload()
    return multiprocessing.get_context("forkserver")


def start(path, *overrides):
    """`onepeace train` in a process group of its own."""
    package = str(Path(trainer.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "onepeace", "train", str(path), *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": package},
    )


def last_step(out):
    """The last step in a run's log; 0 if there is no log yet."""
    log = out / "log.jsonl"
    lines = read_log(log) if log.exists() else []
    return max((line["step"] for line in lines), default=0)


def wait_for_step(is_running, out, step):
    """Until the log of a run has it, or the process has ended."""
    while is_running() and last_step(out) < step:
        time.sleep(0.005)


def stop(process, out):
    """Send SIGTERM to the group of the process: the step that it saved, and what it wrote."""
    os.killpg(process.pid, signal.SIGTERM)
    stderr = process.communicate()[1]
    assert process.returncode == 0, stderr
    step = step_of(folders(out)[-1])
    assert step < STEPS
    (line,) = (line for line in stderr.splitlines() if line.startswith("onepeace: stopped"))
    assert f" {step} " in line
    assert "Traceback" not in stderr
    assert "try it" not in stderr  # there is no model yet
    return step, stderr


def test_resume_after_kill_and_stop_is_exact(parts, whole, out, recipe_file, caplog):
    """Killed anywhere in a step, then stopped by a signal to the whole group, the workers too, as a scheduler sends."""
    write_config(random_recipe(parts, out), recipe_file)
    rng = np.random.default_rng(8)

    killed = forkserver().Process(target=train, args=(recipe_file, []))
    killed.start()
    wait_for_step(killed.is_alive, out, rng.integers(3, 6))
    time.sleep(rng.uniform(0, 0.04))  # a step takes so long
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL

    stopped = start(recipe_file, "run.save_every=0")
    wait_for_step(lambda: stopped.poll() is None, out, 8)
    step, stderr = stop(stopped, out)
    assert "resuming from step" in stderr
    assert step >= 8

    caplog.clear()
    assert cli.main(["train", str(recipe_file), "run.workers=2"]) == 0  # as many workers as you like
    assert f"resuming from step {step}" in caplog.text
    assert_same_run(out, whole)


def test_ctrl_c_completes_checkpoint_and_says_so_once(small_recipe, out, recipe_file, monkeypatch, capsys, caplog):
    """Pressed while a checkpoint is being written."""
    recipe = small_recipe(out.name, steps=6, run={**RUN, "save_every": 2})
    write_config(recipe, recipe_file)
    write = safetensors.torch.save_file
    forward_backward = Stepper.forward_backward

    def write_slowly(*arguments):
        time.sleep(0.5)
        write(*arguments)

    def press_in_third_step(stepper, group):
        if last_step(out) == 2:
            signal.raise_signal(signal.SIGINT)
        return forward_backward(stepper, group)

    monkeypatch.setattr(safetensors.torch, "save_file", write_slowly)
    monkeypatch.setattr(Stepper, "forward_backward", press_in_third_step)

    assert cli.main(["train", str(recipe_file)]) == 130

    lines = [*capsys.readouterr().err.splitlines(), *caplog.messages]
    (line,) = (line for line in lines if line.removeprefix("onepeace: ").startswith("stopped"))
    assert " 3 " in line
    assert [step_of(folder) for folder in folders(out)] == [2, 3]


# Killed in the writing of a checkpoint


class Kill:
    """Counts what the thread that writes checkpoints does to files, slowly, and kills the process at one operation."""

    def __init__(self, at):
        self.at = at
        self.count = 0

    def __call__(self, function):
        def counted(*arguments, **options):
            if threading.current_thread() is not threading.main_thread():
                self.count += 1
                if self.count == self.at:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.003)
            return function(*arguments, **options)

        return counted


def write_in_pieces(write, kill):
    """A save_file that writes piece by piece, so that a killed process leaves a part of a file."""

    def slowly(tensors, path, metadata):
        write(tensors, path, metadata)
        content = path.read_bytes()
        size = len(content) // 8
        with path.open("wb", buffering=0) as file:
            add = kill(file.write)
            for begin in range(0, len(content), size):
                add(content[begin : begin + size])

    return slowly


def train_killed(path, at, counts):
    """Train; the process is killed at operation ``at`` of the writing, or tells how many there are."""
    kill = Kill(at)
    for name in ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink"):
        setattr(os, name, kill(getattr(os, name)))
    safetensors.torch.save_file = write_in_pieces(safetensors.torch.save_file, kill)
    trainer.train(read_recipe(path))
    counts.put(kill.count)


def train_in_process(path, at=None):
    """Exit code of a process that trains, and the number of operations."""
    context = forkserver()
    counts = context.SimpleQueue()
    process = context.Process(target=train_killed, args=(path, at, counts))
    process.start()
    process.join()
    return process.exitcode, 0 if process.exitcode else counts.get()


@pytest.fixture
def make(small_recipe, tmp_path):
    """Makes recipes that write a checkpoint in every step, and their files."""

    def write(name):
        recipe = small_recipe(
            name,
            steps=3,
            run={**RUN, "ema": 0.9, "save_every": 1},
            model={**MODEL, "drop_path": 0.3},
        )
        write_config(recipe, tmp_path / f"{name}.yaml")
        return recipe

    return write


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_resume_after_kill_anywhere_in_writing_is_exact(make, tmp_path, caplog, num_kills):
    make("whole")
    code, num_operations = train_in_process(tmp_path / "whole.yaml")
    assert code == 0

    num_half_written = 0
    for operation in np.random.default_rng(45).choice(num_operations, num_kills, replace=False):
        recipe = make(str(operation))
        code, _ = train_in_process(tmp_path / f"{operation}.yaml", at=1 + operation)
        assert code == -signal.SIGKILL
        out = tmp_path / str(operation)
        num_half_written += len(list(out.glob(".*.tmp")))

        trainer.train(recipe)

        assert not list(out.glob(".*.tmp"))
        assert len(folders(out)) == 2
        assert_same_run(out, tmp_path / "whole")
    assert num_half_written > num_kills / 2
    assert "resuming from the one before" not in caplog.text


# A full disk


@contextmanager
def no_file_above(size):
    """The disk becomes full in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_last_checkpoint(parts, whole, out, recipe_file, capsys):
    recipe = random_recipe(parts, out)
    write_config(recipe, recipe_file)
    trainer.train(recipe, stop_at=4)
    (kept,) = folders(out)
    (part,) = kept.glob("*.safetensors")
    capsys.readouterr()

    with no_file_above(part.stat().st_size // 2):
        code = cli.main(["train", str(recipe_file), "run.workers=0"])  # a worker's batches would count as files

    assert code == 1
    stderr = capsys.readouterr().err
    assert f"{out}: the checkpoint of step 6" in stderr
    assert "make room" in stderr
    assert folders(out) == [kept]
    assert not list(out.glob(".*.tmp"))

    assert cli.main(["train", str(recipe_file)]) == 0
    assert_same_run(out, whole)


def test_full_disk_at_line_of_log_names_log(tmp_path):
    journal = Log(tmp_path)
    journal.write(1, {"loss": 1.0})

    with no_file_above(30), pytest.raises(UserError, match=r"log\.jsonl: the line of step 2 .*room"):
        journal.write(2, {"loss": 1.0})


# Gradients that are no numbers


@pytest.fixture
def poison(monkeypatch):
    """Makes one picture of the batch of some steps no number; the list that it returns gets each step's keys."""
    to = Batch.to

    def begin(*steps):
        keys = []

        def move(batch, device):
            keys.append(batch.keys)
            if len(keys) in steps:
                batch.inputs["image"]["pixels"][1] = torch.nan
            return to(batch, device)

        monkeypatch.setattr(Batch, "to", move)
        return keys

    return begin


@pytest.fixture
def train_with_bad_steps(small_recipe, tmp_path, monkeypatch):
    """Trains with a limit of bad steps in a row."""

    def train(limit):
        monkeypatch.setattr("onepeace.train.step.MAX_UNUSABLE", limit)
        run = {**RUN, "ema": 0.9, "save_every": 2}
        trainer.train(small_recipe(steps=7, run=run))
        return tmp_path

    return train


def test_nan_gradient_is_named_and_changes_no_state(poison, train_with_bad_steps, caplog):
    keys = poison(3, 5)

    out = train_with_bad_steps(limit=1)

    warnings = [message for message in caplog.messages if "skipped" in message]
    for step, warning in zip((3, 5), warnings, strict=True):
        assert f"step {step} is nan" in warning
        assert ", ".join(keys[step - 1]) in warning
    assert [line["step"] for line in logged(out) if "loss" in line] == [1, 2, 4, 6, 7]
    saved = read_newest(out)
    assert {int(state["step"]) for state in saved.optimizer.values()} == {5}
    for tensor in [*saved.model.values(), *saved.ema.values()]:
        assert tensor.isfinite().all()


def test_run_ends_after_too_many_nan_gradients(poison, train_with_bad_steps, tmp_path):
    keys = poison(3)

    with pytest.raises(UserError, match=r"step 3 is nan, .* lower optim\.lr") as error:
        train_with_bad_steps(limit=0)

    for key in keys[2]:
        assert key in str(error.value)
    assert step_of(checkpoint.newest(tmp_path)) == 2
