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
from support.processes import preload
from support.training import DENOISING, MODEL, assert_same_weights, logged, recipe, source

from onepeace import cli
from onepeace.config import write_config
from onepeace.data.batch import Batch
from onepeace.data.shard_writer import new_shards
from onepeace.data.shards import read_source
from onepeace.errors import UserError
from onepeace.train import checkpoint, loop
from onepeace.train.checkpoint_files import folders, step_of
from onepeace.train.log import Log, read_log
from onepeace.train.recipe import read_recipe
from onepeace.train.step import Stepper

resource = pytest.importorskip("resource", reason="needs the signals and limits of POSIX")

STEPS = 16


@pytest.fixture(scope="module")
def parts(root, tmp_path_factory):
    """The squares in four shards."""
    with new_shards(folder := tmp_path_factory.mktemp("parts"), "squares", max_bytes=45_000) as shards:
        for sample in read_source("squares.tar", ("image", "text"), root):
            shards.write(sample.key, {"png": sample.inputs["image"]}, sample.captions, targets={"label": sample.label})
    return folder


def hard(root, out):
    """A recipe that uses all the chance there is: drop path, augmentation, masks; and averaged weights, a worker; and
    windows of two shards."""
    augment = {"image": {"crop_scale": [0.5, 1.0], "flip": True, "color": 0.2}}
    data = {"train": [source(shards="squares-*.tar")], "augment": augment, "shuffle_buffer": 30}
    run = {"batch_size": 8, "workers": 1, "log_every": 1, "save_every": 3, "ema": 0.9}
    return recipe(root, out, STEPS, model={**MODEL, "drop_path": 0.3}, data=data, run=run, **DENOISING)


@pytest.fixture(scope="module")
def whole(parts, tmp_path_factory):
    """Folder of a run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    loop.train(hard(parts, out))
    return out


def assert_same(out, whole):
    lines = logged(out)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert lines == logged(whole)
    assert_same_weights(out / "model", whole / "model")


def start(path, *overrides):
    """`onepeace train` in a process group of its own."""
    package = str(Path(loop.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "onepeace", "train", str(path), *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": package},
    )


def wait_for(process, out, step):
    """Until the log of a run has a step, or the process has ended."""
    log = out / "log.jsonl"
    while process.poll() is None and not (log.exists() and any(line["step"] == step for line in read_log(log))):
        time.sleep(0.005)


def go_on(path, caplog, *overrides):
    """The same command, to its end in this process; what it logs."""
    caplog.clear()
    assert cli.main(["train", str(path), *overrides]) == 0
    return caplog.text


def test_killed_and_stopped_the_same_command_gives_the_same_run(parts, whole, tmp_path, caplog):
    """Killed anywhere in a step, then stopped by a signal to the whole group, the workers too, as a scheduler sends."""
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"
    write_config(hard(parts, out), path)
    rng = np.random.default_rng(8)
    process = start(path)
    wait_for(process, out, rng.integers(4, 8))
    time.sleep(rng.uniform(0, 0.04))  # a step takes so long
    process.kill()
    assert process.communicate()[1].count("going on from step") == 0
    assert process.returncode == -signal.SIGKILL
    process = start(path, "run.save_every=0")
    wait_for(process, out, 10)
    step, said = stopped(process, out)
    assert "going on from step" in said
    assert step >= 10
    assert f"going on from step {step}" in go_on(path, caplog, "run.workers=2")  # as many as you like
    assert_same(out, whole)


def stopped(process, out):
    """The step that SIGTERM to the group made it save, and what it said."""
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 0, said
    step = step_of(folders(out)[-1])
    assert step < STEPS
    (line,) = (line for line in said.splitlines() if line.startswith("onepeace: stopped"))
    assert f" {step} " in line
    assert "Traceback" not in said
    assert "try it" not in said  # there is no model yet
    return step, said


def test_ctrl_c_saves_and_says_so_once(root, tmp_path, monkeypatch, capsys, caplog):
    """Pressed while a checkpoint is being written, which is completed first."""
    path, out, take = tmp_path / "recipe.yaml", tmp_path / "run", Stepper.forward_backward
    write_config(recipe(root, out, steps=6, run={**RUN, "save_every": 2}), path)
    write = safetensors.torch.save_file

    def write_slowly(*arguments):
        time.sleep(0.5)
        write(*arguments)

    monkeypatch.setattr(safetensors.torch, "save_file", write_slowly)

    def pressed(stepper, group):
        if len(read_log(out / "log.jsonl")) == 2:
            signal.raise_signal(signal.SIGINT)
        return take(stepper, group)

    monkeypatch.setattr(Stepper, "forward_backward", pressed)
    assert cli.main(["train", str(path)]) == 130
    said = [*capsys.readouterr().err.splitlines(), *caplog.messages]
    (line,) = (line for line in said if line.removeprefix("onepeace: ").startswith("stopped"))
    assert " 3 " in line
    assert [step_of(folder) for folder in folders(out)] == [2, 3]


KILLS = 20


class Kill:
    """Counts what the thread that writes checkpoints does to files, slowly, and kills the process at one of it."""

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
    """Of save_file: the content comes piece by piece, so that a killed process leaves a part of a file."""

    def slowly(tensors, path, metadata):
        write(tensors, path, metadata)
        content = path.read_bytes()
        with path.open("wb", buffering=0) as file:
            add = kill(file.write)
            for start in range(0, len(content), len(content) // 8):
                add(content[start : start + len(content) // 8])

    return slowly


def train_killed(path, at, counted):
    """Train; the process is killed at operation ``at`` of the writing, or tells how many there are."""
    kill = Kill(at)
    for name in ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink"):
        setattr(os, name, kill(getattr(os, name)))
    safetensors.torch.save_file = write_in_pieces(safetensors.torch.save_file, kill)
    loop.train(read_recipe(path))
    counted.put(kill.count)


def train_in_process(path, at):
    """Exit code of a process that trains, and the number of operations."""
    context = multiprocessing.get_context("forkserver")
    preload()
    counted = context.SimpleQueue()
    process = context.Process(target=train_killed, args=(path, at, counted))
    process.start()
    process.join()
    return process.exitcode, 0 if process.exitcode else counted.get()


def test_killed_anywhere_in_the_writing_of_a_checkpoint_a_run_goes_on_to_the_bit(root, tmp_path, caplog):
    def make(name):
        run = {**RUN, "ema": 0.9, "save_every": 1}
        made = recipe(root, tmp_path / name, steps=4, run=run, model={**MODEL, "drop_path": 0.3})
        write_config(made, tmp_path / f"{name}.yaml")
        return made

    make("whole")
    code, operations = train_in_process(tmp_path / "whole.yaml", at=None)
    assert code == 0
    half_written = 0
    for at in np.random.default_rng(45).choice(operations, KILLS, replace=False):
        wanted = make(str(at))
        code, _ = train_in_process(tmp_path / f"{at}.yaml", at=1 + at)
        assert code == -signal.SIGKILL
        out = tmp_path / str(at)
        half_written += len(list(out.glob(".*.tmp")))
        loop.train(wanted)
        assert not list(out.glob(".*.tmp"))
        assert len(folders(out)) == 2
        assert logged(out) == logged(tmp_path / "whole")
        assert_same_weights(out / "model", tmp_path / "whole" / "model")
    assert half_written > KILLS / 2
    assert "going on from the one before" not in caplog.text


def test_cut_off_checkpoint_falls_back_on_the_one_before(parts, whole, tmp_path, caplog):
    wanted = hard(parts, tmp_path)
    loop.train(wanted, stop_at=10)
    newest = folders(tmp_path)[-1]
    (part,) = newest.glob("*.safetensors")
    os.truncate(part, part.stat().st_size // 2)
    loop.train(wanted)
    assert newest.name == "step-00000009"
    assert f"{part}: damaged" in caplog.text
    assert "going on from step 6" in caplog.text
    assert_same(tmp_path, whole)


@contextmanager
def no_file_above(size):
    """What a full disk does to a file that is being written, in the middle of it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_is_one_line_and_the_run_goes_on_with_more_room(parts, whole, tmp_path, capsys):
    path, out = tmp_path / "recipe.yaml", tmp_path / "run"
    write_config(hard(parts, out), path)
    loop.train(hard(parts, out), stop_at=4)
    (kept,) = folders(out)
    (part,) = kept.glob("*.safetensors")
    capsys.readouterr()
    with no_file_above(part.stat().st_size // 2):
        code = cli.main(["train", str(path), "run.workers=0"])  # what a worker hands over would count as a file
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("onepeace: ")]
    assert code == 1
    assert f"{out}: the checkpoint of step 6 cannot be written" in said[-1]
    assert "make room, and the same command goes on" in said[-1]
    assert checkpoint.newest(out) == kept
    assert folders(out) == [kept]
    assert not list(out.glob(".*.tmp"))
    assert cli.main(["train", str(path)]) == 0
    assert_same(out, whole)


def test_full_disk_at_a_line_of_the_log_names_the_log(tmp_path):
    journal = Log(tmp_path)
    journal.write(1, {"loss": 1.0})
    with no_file_above(30), pytest.raises(UserError, match=r"log\.jsonl: the line of step 2 cannot be written .*room"):
        journal.write(2, {"loss": 1.0})


def poison(monkeypatch, steps):
    """One picture of the batch is not a number in these steps; returns the keys of each step's samples."""
    to, keys = Batch.to, []

    def move(batch, device):
        keys.append(batch.keys)
        if len(keys) in steps:
            batch.inputs["image"]["pixels"][1] = torch.nan
        return to(batch, device)

    monkeypatch.setattr(Batch, "to", move)
    return keys


RUN = {"batch_size": 4, "log_every": 1}


def test_step_with_a_gradient_that_is_no_number_is_left_out_and_named(root, tmp_path, monkeypatch, caplog):
    keys = poison(monkeypatch, {3, 5})
    loop.train(recipe(root, tmp_path, steps=7, run={**RUN, "ema": 0.9, "max_bad_steps": 1}))
    warnings = [record.message for record in caplog.records if "left out" in record.message]
    assert warnings == [
        f"the gradient of step {step} is nan: left out; its samples: {', '.join(keys[step - 1])}" for step in (3, 5)
    ]
    lines = {line["step"]: line for line in read_log(tmp_path / "log.jsonl")}
    assert [step for step, line in lines.items() if "loss" in line] == [1, 2, 4, 6, 7]
    saved = read_newest(tmp_path)
    assert {int(state["step"]) for state in saved.optimizer.values()} == {5}
    assert all(tensor.isfinite().all() for tensor in [*saved.model.values(), *saved.ema.values()])
    keys.clear()
    with pytest.raises(UserError, match=r"gradient of step 3 is nan, .*; lower optim\.lr") as caught:
        loop.train(recipe(root, tmp_path / "stopped", steps=9, run={**RUN, "save_every": 2, "max_bad_steps": 0}))
    assert all(key in str(caught.value) for key in keys[2])
    assert step_of(checkpoint.newest(tmp_path / "stopped")) == 2
