"""The crash model of onepeace/index/README.md, fault by fault; support/crash_trials.py says what each trial is."""

import shutil
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from support import crash, crash_trials, disk

from onepeace.index.store import DATABASE, Store
from onepeace.index.verify import verify

SCENES = list(crash_trials.SCENES)
many = pytest.mark.slow


@pytest.fixture(scope="module")
def plain_worker():
    with crash.Worker() as worker:
        yield worker


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    with crash.Worker(disk.compile_shim(tmp_path_factory.mktemp("shim"))) as worker:
        yield worker


@pytest.mark.parametrize("trials", [2, pytest.param(100, marks=many)])
@pytest.mark.parametrize("scene", SCENES)
def test_killed(scene, trials, tmp_path, plain_worker):
    outcome = crash_trials.kills(tmp_path, scene, plain_worker, trials)
    assert (outcome.trials, outcome.lost) == (trials, 0)


@pytest.mark.parametrize("trials", [4, pytest.param(None, marks=many)])
@pytest.mark.parametrize("scene", SCENES)
def test_power_loss(scene, trials, tmp_path, worker):
    outcome = crash_trials.power_losses(tmp_path, scene, worker, trials)
    assert outcome.trials >= (trials or 500)
    assert outcome.lost == 0


@pytest.mark.parametrize("trials", [2, pytest.param(None, marks=many)])
@pytest.mark.parametrize("scene", SCENES)
def test_full_disk(scene, trials, tmp_path, worker):
    outcome = crash_trials.full_disks(tmp_path, scene, worker, trials)
    assert outcome.trials >= (trials or 100)
    assert outcome.lost == 0


@pytest.mark.parametrize("trials", [12, pytest.param(1000, marks=many)])
@pytest.mark.parametrize("how", crash_trials.DAMAGES)
def test_damaged_file(how, trials, tmp_path, plain_worker):
    assert crash_trials.damages(tmp_path, how, plain_worker, trials).trials == trials


@many
@pytest.mark.parametrize("scene", SCENES)
def test_full_file_system(scene, tmp_path, plain_worker):
    try:
        outcome = crash_trials.full_file_systems(tmp_path, scene, plain_worker)
    except PermissionError as error:
        pytest.skip(f"needs the right to mount a small file system: {error}")
    assert outcome.trials > 10
    assert outcome.lost == 0


@many
def test_killed_command_with_a_model(tmp_path, samples, random_folder):
    files = shutil.copytree(samples, tmp_path / "files")

    def start(index, size):
        options = ["--index", index, "--model", random_folder, "--device", "cpu", "--batch-size", str(size), "--quiet"]
        return subprocess.Popen([sys.executable, "-m", "onepeace", "index", "build", files, *options])

    def vectors(index):
        with closing(Store(index)) as store:
            rows = store.rows()
            return {item.path: rows.vectors[rows.row[rows.file == item.id]] for item in store.items()}

    begun = time.perf_counter()
    assert start(tmp_path / "whole", 4).wait() == 0
    seconds = time.perf_counter() - begun
    whole, chance = vectors(tmp_path / "whole"), np.random.default_rng(0)
    index = tmp_path / "index"
    for size in (4, 7, 1, 3):
        process = start(index, size)
        time.sleep(chance.uniform(0.3, 1) * seconds)
        process.kill()
        process.wait()
        assert not (index / DATABASE).exists() or verify(index).ok
    assert start(index, 5).wait() == 0
    assert verify(index).ok
    found = vectors(index)
    assert found.keys() == whole.keys()
    for path, wanted in whole.items():
        assert found[path].shape == wanted.shape
        np.testing.assert_allclose(found[path], wanted, atol=1e-5)
